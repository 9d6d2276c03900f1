"""Configs: frozen, unknown keys rejected, the docstring under a field is its help. Knows YAML, not the verbs."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from tunesmith.core.errors import UsageError, did_you_mean


class Config(BaseModel):
    """What a person wishes: compared by value, never changed, rejects keys it does not know."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )


C = TypeVar("C", bound=Config)
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""What every library takes as a seed."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars (`off` is a word, `1e-4` a number); repeated keys and aliases are refused."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise ComposerError(None, None, "aliases are not supported", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.value in seen:
                raise ConstructorError(None, None, f"key {key.value!r} appears twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _use_yaml_1_2() -> None:
    import re

    _Loader.yaml_implicit_resolvers = {
        first: [
            (tag, regexp) for tag, regexp in entries if tag not in {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"}
        ]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$", re.I), list("tTfF"))
    number = re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$")
    _Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))


_use_yaml_1_2()


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML text. Raises UsageError with file and line when it is not YAML."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{where}:{line}", f"not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise UsageError(where, f"not valid YAML: {str(error).splitlines()[0]}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises UsageError when the file is missing, broken or not a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(str(path), f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(str(path), "is not UTF-8 text", do="Save it as UTF-8") from None
    document = parse_yaml(text, str(path))
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UsageError(str(path), "must be a mapping of options", got=type(document).__name__)
    return document


def load(cls: type[C], document: Mapping[str, Any], overrides: Sequence[tuple[str, Any]] = (), where: str = "") -> C:
    """Build a Config from a document and dotted overrides (`("method.rank", 64)`).

    An override may leave out the section where its last word names one option only (`("rank", 64)`). Raises UsageError in one line, naming the dotted option, what it must be, and the value that came.
    """
    merged = _copy(document)
    for path, value in overrides:
        _put(merged, _whole_path(cls, path).split("."), value)
    _fill_kinds(cls, merged)
    _refuse_truth(cls, merged, where)
    try:
        return cls.model_validate(merged)
    except ValidationError as error:
        raise _explain(cls, merged, error, where) from None


def _refuse_truth(cls: type[Config], document: dict[str, Any], where: str) -> None:
    """Raise UsageError for true or false where a number is wanted: pydantic would take them for 1 and 0."""
    for option in options(cls):
        *sections, name = option.path.split(".")
        node: Any = document
        for section in sections:
            node = node.get(section) if isinstance(node, dict) else None
        wanted = set(option.type.split())
        is_number = bool(wanted & {"int", "number"}) and "true" not in wanted
        if not is_number or not isinstance(node, dict) or option.kind not in {"", node.get("kind")}:
            continue
        if isinstance(node.get(name), bool):
            raise UsageError(": ".join(filter(None, (where, option.path))), "must be a number", got=node[name])


def dump_yaml(config: Config) -> str:
    """The resolved config as YAML, options in the order of their class."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def _whole_path(cls: type[Config], path: str) -> str:
    if path.split(".", maxsplit=1)[0] in cls.model_fields:
        return path
    ending = {option.path for option in options(cls) if option.path.endswith(f".{path}")}
    return ending.pop() if len(ending) == 1 else path


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _put(document: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        node = document.setdefault(key, {})
        if not isinstance(node, dict):  # the short form `dataset: rows.json` means {path: rows.json}
            node = document[key] = {"path": node}
        document = node
    document[path[-1]] = value


def _fill_kinds(cls: type[Config], document: dict[str, Any]) -> None:
    """`{rank: 8}` under a union means the default's kind; a bare word means `{kind: word}`."""
    for name, field in cls.model_fields.items():
        value = document.get(name)
        variants = variants_of(field)
        if variants and isinstance(value, str):
            value = document[name] = {"kind": value}
        if not isinstance(value, dict):
            continue
        if variants and "kind" not in value and isinstance(field.default, Config):
            document[name] = value = {"kind": field.default.kind, **value}  # pyright: ignore[reportAttributeAccessIssue]
        inner = next((v for v in variants if _kind(v) == value.get("kind")), None) if variants else section_of(field)
        if inner:
            _fill_kinds(inner, value)


def _parts(annotation: Any) -> list[Any]:
    """The members of a union, through Annotated; a single type gives itself."""
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    if get_origin(annotation) in {Union, types.UnionType}:
        return [part for member in get_args(annotation) for part in _parts(member)]
    return [annotation]


def _configs(field: FieldInfo) -> list[type[Config]]:
    return [part for part in _parts(field.annotation) if isinstance(part, type) and issubclass(part, Config)]


def variants_of(field: FieldInfo) -> list[type[Config]]:
    """The choices of a shelf when the field is a discriminated union (each has `kind`), else []."""
    found = _configs(field)
    return found if found and all(_is_choice(c) for c in found) else []


def _is_choice(cls: type[Config]) -> bool:
    """Whether a Config is one choice of a shelf: its `kind` can be one word only."""
    return "kind" in cls.model_fields and len(get_args(cls.model_fields["kind"].annotation)) == 1


def section_of(field: FieldInfo) -> type[Config] | None:
    """The Config class below a plain nested field, else None."""
    found = _configs(field)
    return found[0] if len(found) == 1 and not variants_of(field) else None


def _kind(cls: type[Config]) -> str:
    return get_args(cls.model_fields["kind"].annotation)[0]


@dataclass(frozen=True, slots=True)
class Option:
    """One line of help: dotted path, type in words, default (None where required), help, and the kind it belongs to."""

    path: str
    type: str
    default: Any
    required: bool
    help: str
    kind: str = ""


def options(cls: type[Config], prefix: str = "", kind: str = "") -> Iterator[Option]:
    """Walk every option of a Config class in the order of its fields, shelves variant by variant."""
    for name, field in cls.model_fields.items():
        path = f"{prefix}{name}"
        help_text = " ".join((field.description or "").split())
        variants, section = variants_of(field), section_of(field)
        required = field.is_required()
        default = None if required else field.get_default(call_default_factory=True)
        if variants:
            chosen = default.kind if isinstance(default, Config) else None  # pyright: ignore[reportAttributeAccessIssue]
            kinds = [_kind(v) for v in variants]
            yield Option(f"{path}.kind", " | ".join(kinds), chosen, required, help_text, kind)
            for variant in variants:
                inner = (option for option in options(variant, f"{path}.", _kind(variant)))
                yield from (option for option in inner if option.path != f"{path}.kind")
        elif section:
            yield from options(section, f"{path}.", kind)
        else:
            yield Option(path, describe_type(field), default, required, help_text, kind)


def describe_type(field: FieldInfo) -> str:
    """The type of a field in the words of the help text: `int >= 1`, `cosine | linear`, `text`."""
    words = {str: "text", int: "int", float: "number", bool: "true | false", type(None): "null", Path: "path"}
    names: list[str] = []
    for part in _parts(field.annotation):
        if get_origin(part) is Literal:
            names += [str(choice) for choice in get_args(part)]
        elif get_origin(part) in {tuple, list}:
            names.append("list")
        elif get_origin(part) is dict or part is dict:
            names.append("mapping")
        else:
            names.append(words.get(part, getattr(part, "__name__", str(part))))
    limits = [
        f"{sign} {_number(value)}"
        for meta in field.metadata
        for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"))
        if (value := getattr(meta, attribute, None)) is not None
    ]
    return " ".join([" | ".join(dict.fromkeys(names)), *limits])


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _explain(cls: type[Config], document: dict[str, Any], error: ValidationError, where: str) -> UsageError:
    first = min(error.errors(), key=lambda found: found["type"] == "missing")  # a typo hides what it meant
    path, node = [], document
    for key in first["loc"]:
        is_variant = isinstance(node, dict) and key not in node and node.get("kind") == key
        if is_variant or (isinstance(key, str) and ("[" in key or key.startswith("constrained-"))):
            continue  # pydantic names the branch of a union; a person does not
        path.append(str(key))
        node = node.get(str(key)) if isinstance(node, dict) else None
    dotted = ".".join(path)
    place = ": ".join(part for part in (where, dotted) if part)
    kind, context = first["type"], first.get("ctx", {})
    if kind == "extra_forbidden":
        known = _names_beside(cls, path)
        elsewhere = [o.path for o in options(cls) if o.path.split(".")[-1] == path[-1] and o.path != dotted]
        hint = f"Did you mean {elsewhere[0]!r}?" if elsewhere else did_you_mean(path[-1], known)
        return UsageError(where, f"unknown option {dotted!r}", do=hint)
    if kind == "missing":
        return UsageError(place, "is required", do=f"Add it to the config or give --{dotted}")
    if kind in {"union_tag_invalid", "literal_error"}:
        choices = str(context.get("expected_tags") or context.get("expected")).replace("'", "").replace(" or ", ", ")
        asked = first["input"]
        got = asked.get("kind") if isinstance(asked, dict) else asked
        hint = did_you_mean(str(got), choices.split(", "))
        return UsageError(place, f"must be one of {choices}", got=got, do=hint if hint.startswith("Did") else "")
    limit = {"greater_than_equal": "ge", "greater_than": "gt", "less_than_equal": "le", "less_than": "lt"}.get(kind)
    if limit:
        words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}[limit]
        return UsageError(place, f"must be {words} {_number(context[limit])}", got=first["input"])
    said = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return UsageError(place, said, got=first["input"])


def _names_beside(cls: type[Config], path: list[str]) -> list[str]:
    parent = "".join(f"{part}." for part in path[:-1])
    return list(
        dict.fromkeys(o.path.removeprefix(parent).split(".")[0] for o in options(cls) if o.path.startswith(parent))
    )
