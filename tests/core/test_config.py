"""Configs: one line for every mistake, YAML without traps, unions by kind."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from tunesmith.core.config import Config, dump_yaml, load, options, parse_yaml
from tunesmith.core.errors import UsageError
from tunesmith.core.manual import help_text, template


class Small(Config):
    """One choice."""

    kind: Literal["small"] = "small"
    """Small."""
    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of it."""


class Large(Config):
    """Another choice."""

    kind: Literal["large"] = "large"
    """Large."""


class Inner(Config):
    """A section."""

    rate: Annotated[float, Field(gt=0)] = 1e-3
    """How fast."""
    mode: Literal["on", "off"] = "off"
    """Whether."""


class Outer(Config):
    """A verb's config."""

    name: str
    """Who."""
    method: Annotated[Small | Large, Field(discriminator="kind")] = Small()
    """How."""
    inner: Inner = Inner()
    """More."""
    limit: int | None = None
    """Bound."""


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "x.yaml: name: is required. Add it to the config or give --name."),
        ({"name": "a", "method": {"rank": 0}}, "x.yaml: method.rank: must be at least 1. Got 0."),
        (
            {"name": "a", "method": {"kind": "smal"}},
            "x.yaml: method: must be one of small, large. Got smal. Did you mean 'small'?",
        ),
        ({"name": "a", "inner": {"rat": 1}}, "x.yaml: unknown option 'inner.rat'. Did you mean 'rate'?"),
        ({"name": "a", "rank": 1}, "x.yaml: unknown option 'rank'. Did you mean 'method.rank'?"),
        ({"name": "a", "inner": {"rate": 0}}, "x.yaml: inner.rate: must be more than 0. Got 0."),
        ({"name": "a", "inner": {"rate": float("nan")}}, "x.yaml: inner.rate: should be a finite number. Got nan."),
        (
            {"name": "a", "inner": {"mode": "of"}},
            "x.yaml: inner.mode: must be one of on, off. Got of. Did you mean 'off'?",
        ),
        ({"name": "a", "method": {"kind": "large", "rank": 1}}, "x.yaml: unknown option 'method.rank'."),
        ({"name": "a", "limit": "many"}, "x.yaml: limit: should be a valid integer"),
    ],
)
def test_every_mistake_is_one_line(document, said):
    with pytest.raises(UsageError) as caught:
        load(Outer, document, where="x.yaml")
    assert str(caught.value).startswith(said.rstrip(".")), caught.value
    assert "\n" not in str(caught.value)


def test_overrides_reach_into_sections_and_kinds():
    made = load(Outer, {"name": "a"}, [("method.rank", 3), ("inner.rate", "5e-1")])
    assert made.method == Small(rank=3)
    assert made.inner.rate == 0.5
    assert load(Outer, {"name": "a", "method": "large"}).method == Large()
    assert load(Outer, {"name": "a"}, [("rank", 5)]).method == Small(rank=5)


def test_configs_do_not_change():
    made = load(Outer, {"name": "a"})
    with pytest.raises(ValueError, match="frozen"):
        made.name = "b"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: off", "off"),
        ("a: no", "no"),
        ("a: 1e-4", 1e-4),
        ("a: true", True),
        ("a: 3", 3),
        ("a: 1.5", 1.5),
        ("a: null", None),
    ],
)
def test_yaml_words_are_words_and_numbers_are_numbers(text, value):
    assert parse_yaml(text, "x") == {"a": value}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2", "x:2: not valid YAML: key 'a' appears twice"),
        ("a: &x 1\nb: *x", "x:2: not valid YAML: aliases are not supported"),
        ("a: [1", "x:"),
        ("a: !!python/object/apply:os.system [ls]", "x:1: not valid YAML"),
    ],
)
def test_yaml_with_surprises_is_refused(text, said):
    with pytest.raises(UsageError) as caught:
        parse_yaml(text, "x")
    assert str(caught.value).startswith(said)


def test_dumped_config_loads_to_the_same(tmp_path):
    made = load(Outer, {"name": "a"}, [("method.rank", 3)])
    assert load(Outer, parse_yaml(dump_yaml(made), "x")) == made


def test_help_and_template_show_every_option():
    text = help_text("outer", "Does it.", "name", Outer, {})
    for option in options(Outer):
        assert f"--{option.path} " in text
        assert option.help in text
    filled = template("outer", Outer).replace("name:   # required", "name: me")
    assert load(Outer, parse_yaml(filled, "t")) == Outer(name="me")
