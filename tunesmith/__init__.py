"""Tunesmith: turn an open language model into a specialist and prove every step.

The Python API has the verbs of the command line: `tunesmith.train(dataset="rows.json", model="embedded")`, or with a
Config: `tunesmith.train(tunesmith.TrainConfig(...), out="runs/mine")`. A verb returns its artifact and raises the
errors of `tunesmith.core.errors`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    from tunesmith import verbs

    if name in verbs.VERBS:
        return _verb(name)
    verb = name.removesuffix("Config").lower()
    if name.endswith("Config") and verb in verbs.VERBS:
        return verbs.config_class(verb)
    raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    from tunesmith import verbs

    return sorted([*globals(), *verbs.VERBS, *(f"{verb.title()}Config" for verb in verbs.VERBS)])


def _verb(verb: str) -> Callable[..., Any]:
    from tunesmith import verbs

    def call(
        config: Any = None, *, out: str | Path | None = None, resume: bool = False, quiet: bool = True, **wishes: Any
    ) -> Any:
        from tunesmith.core.config import load

        chosen = config if config is not None else load(verbs.config_class(verb), wishes, where=verb)
        return verbs.perform(verb, chosen, out, resume=resume, quiet=quiet)[0]

    call.__name__ = verb
    call.__doc__ = verbs.summary(verb)
    return call


