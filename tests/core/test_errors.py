"""The tree of errors is what its docstring and the documents say."""

from __future__ import annotations

import re

import pytest

from tunesmith.core import errors
from tunesmith.core.errors import DataError, TunesmithError, did_you_mean


def tree() -> list[type[TunesmithError]]:
    return [TunesmithError, *TunesmithError.__subclasses__()]


@pytest.mark.parametrize("error", tree(), ids=lambda e: e.__name__)
def test_docstring_tells_the_codes(error):
    line = re.search(rf"{error.__name__}\s+(\d+)\s+(\d+)", errors.__doc__ or "")
    assert line
    assert (int(line[1]), int(line[2])) == (error.exit_code, error.http_status)


def test_exit_codes_differ():
    assert len({error.exit_code for error in tree()}) == len(tree())


def test_messages_have_one_shape():
    assert (
        str(DataError("faq.jsonl:17", "no assistant turn", do="Add one")) == "faq.jsonl:17: no assistant turn. Add one."
    )
    assert str(DataError("x", "is off", got=0)) == "x: is off. Got 0."
    long = str(DataError("x", "is off", got="word " * 100))
    assert len(long) < 160
    assert "\n" not in str(DataError("x", "is off", got="two\nlines here"))


def test_did_you_mean():
    assert did_you_mean("trian", ("train", "plan")) == "Did you mean 'train'?"
    assert did_you_mean("zzzz", ("train", "plan")) == "Known: train, plan."
