"""Every error a person can cause or mend, with how the process ends (exit code) and what HTTP answers.

TunesmithError         1  500  something in Tunesmith itself; please report it
├── UsageError         2  400  unknown verb or option, value out of range, run folder in the way
├── DataError          3  422  empty or broken file, wrong keys, nothing to train on, too much lost
├── ModelError         4  404  no such model, not a package, adapter of another base, unsafe weights
├── CapacityError      5  507  does not fit in memory, disk full, file too large
├── ServiceError       6  503  port taken, remote server unreachable, engine gone
├── ProofError         7  500  an export does not behave like its model, or a replay like its run
├── MissingExtra       8  501  a library of another installation extra is needed
├── DiseaseFound       9  500  the doctor found something, and the person asked to end then
├── Paused            75  503  training stopped by SIGTERM or Ctrl-C and saved; --resume goes on
└── Interrupted      130  499  stopped by the person (Ctrl-C)

A message is one line: `where: what. Got value. Do this.`
"""

from __future__ import annotations

from typing import ClassVar

_NOTHING = object()


class TunesmithError(Exception):
    """Root of the tree: one line for a person, an exit code for a shell, a status for HTTP."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, where: str, what: str, *, got: object = _NOTHING, do: str = "") -> None:
        parts = [f"{where}: {what.rstrip('.')}." if where else f"{what.rstrip('.')}."]
        if got is not _NOTHING:
            parts.append(f"Got {_shorten(got)}.")
        if do:
            parts.append(do if do[-1] in ".?" else f"{do}.")
        super().__init__(" ".join(parts))


class UsageError(TunesmithError):
    """The words typed are off: verb, option, value, or a run folder that is already in use."""

    exit_code = 2
    http_status = 400


class DataError(TunesmithError):
    """The rows cannot be used as they are."""

    exit_code = 3
    http_status = 422


class ModelError(TunesmithError):
    """The model, adapter or package cannot be used."""

    exit_code = 4
    http_status = 404


class CapacityError(TunesmithError):
    """Memory or disk does not suffice."""

    exit_code = 5
    http_status = 507


class ServiceError(TunesmithError):
    """A server or engine cannot be reached, started or kept."""

    exit_code = 6
    http_status = 503


class ProofError(TunesmithError):
    """What was made does not behave as it must: an export unlike its model, a replay unlike its run."""

    exit_code = 7


class MissingExtra(TunesmithError):
    """A library is missing; the message names the extra that brings it."""

    exit_code = 8
    http_status = 501


class DiseaseFound(TunesmithError):
    """The doctor found something, and the config says to end then."""

    exit_code = 9


class Paused(TunesmithError):
    """Training was asked to stop, and saved where it stood; `--resume` goes on (75 is EX_TEMPFAIL: try again later)."""

    exit_code = 75
    http_status = 503


class Interrupted(TunesmithError):
    """The person stopped the work."""

    exit_code = 130
    http_status = 499


def _shorten(value: object, limit: int = 120) -> str:
    text = value if isinstance(value, str) and value and " " not in value else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def did_you_mean(word: str, known: list[str] | tuple[str, ...]) -> str:
    """Return "Did you mean 'train'?" for the nearest of `known`, or the whole list when nothing is near."""
    import difflib

    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if near:
        return f"Did you mean {near[0]!r}?"
    return f"Known: {', '.join(known)}." if known else ""
