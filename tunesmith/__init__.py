"""Tunesmith: turn an open language model into a specialist and prove every step.

The Python API has the verbs of the command line: `tunesmith.train(dataset="rows.json", model="embedded")`, or with a
Config: `tunesmith.train(tunesmith.TrainConfig(...), out="runs/mine")`. A verb returns its artifact and raises the
errors of `tunesmith.core.errors`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def _verbs() -> Any:
    return importlib.import_module("tunesmith.verbs")  # an import statement would ask __getattr__ below, for ever


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name == "verbs":
        raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")
    verbs = _verbs()
    if name in verbs.VERBS:
        return _verb(name)
    verb = name.removesuffix("Config").lower()
    if name.endswith("Config") and verb in verbs.VERBS:
        return verbs.config_class(verb)
    raise AttributeError(f"module 'tunesmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    verbs = _verbs().VERBS
    return sorted([*globals(), *verbs, *(f"{verb.title()}Config" for verb in verbs)])


def _verb(verb: str) -> Callable[..., Any]:
    def call(
        config: Any = None,
        *,
        out: str | Path | None = None,
        resume: bool = False,
        replay: str | Path | None = None,
        quiet: bool = True,
        **wishes: Any,
    ) -> Any:
        from tunesmith.core.config import load
        from tunesmith.core.errors import UsageError

        verbs, replay_of = _verbs(), Path(replay) if replay else None
        if replay_of and (config is not None or wishes or resume):
            raise UsageError("replay", "takes the config of the run as it is", do="Leave the other options out")
        if replay_of:
            config = verbs.locked_config(verb, replay_of)
        chosen = config if config is not None else load(verbs.config_class(verb), wishes, where=verb)
        return verbs.perform(verb, chosen, out, resume=resume, replay_of=replay_of, quiet=quiet)[0]

    call.__name__ = verb
    call.__doc__ = _verbs().summary(verb)
    return call
