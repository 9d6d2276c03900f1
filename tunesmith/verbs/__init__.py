"""The verbs: one file each, `Config -> Artifact`. This page lists them and runs one; it knows none of them.

A verb's file has a one-line docstring (its summary), a `<Verb>Config`, `SUBJECT` (the option that a bare word on the
command line means), `preview(config)` (what a dry run says) and `run(config, run)`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from tunesmith.core.config import Config

VERBS = ("prepare", "plan", "train", "evaluate", "export", "serve", "chat", "doctor", "quickstart", "migrate")
RESUMABLE = ("train",)
RESUME_OPTIONS = ("devices", "batch")
"""What a resumed run may have otherwise: the same steps, made by other processes."""
REPLAYABLE = ("train",)


def verb_module(verb: str) -> ModuleType:
    """The file of a verb."""
    return importlib.import_module(f"tunesmith.verbs.{verb}")


def config_class(verb: str) -> type[Config]:
    """The Config of a verb: `train` -> TrainConfig."""
    return getattr(verb_module(verb), f"{verb.title()}Config")


def summary(verb: str) -> str:
    """The first line of a verb's docstring, read without importing it."""
    import ast

    text = (Path(__file__).parent / f"{verb}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").splitlines()[0]


def read_document(verb: str, subject: str, out: str | None, **how: Any) -> tuple[dict[str, Any], str | None]:
    """What a YAML on the command line says in the options of a verb, and the folder for its run.

    To migrate, a file of another platform is the subject; to the others it is given in our words.
    """
    from tunesmith.core.config import read_yaml
    from tunesmith.verbs.migrate import adopt

    path = Path(subject)
    document = read_yaml(path)
    if verb == "migrate" and "source" not in document:
        return {"source": subject}, out
    return adopt(verb, path, document, out, **how)


def perform(
    verb: str,
    config: Config,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    replay_of: Path | None = None,
    **voice: bool,
) -> tuple[Any, Path]:
    """Run a verb in its run folder. Returns the artifact and the folder; errors are noted there and raised.

    `voice` is how it speaks: `quiet`, `screen_is_stderr`. Raises what the verb could not prove once result.json is written.
    """
    from tunesmith.core.artifacts import as_result
    from tunesmith.core.hardware import set_environment
    from tunesmith.core.run import Run

    set_environment()

    module = verb_module(verb)
    run = Run.start(verb, config, out, resume=resume, replay_of=replay_of, **voice)
    try:
        artifact = module.run(config, run)
        run.finish(as_result(artifact))
    except BaseException as error:
        run.fail(error)
        raise
    if run.unproven:
        raise run.unproven
    return artifact, run.folder


def check_made_by(verb: str, folder: Path) -> None:
    """Raise UsageError where a run folder is that of another verb."""
    from tunesmith.core.errors import UsageError
    from tunesmith.core.run import Run

    started = next((event for event in Run(verb, folder).events() if event["event"] == "started"), {"verb": verb})
    if started.get("verb") != verb:
        raise UsageError(str(folder), f"is no {verb} run", got=f"a {started.get('verb')} run")


def locked_config(verb: str, folder: Path) -> Config:
    """The config that a finished or interrupted run of this verb was locked with. Raises UsageError where there is none."""
    from tunesmith.core import files
    from tunesmith.core.config import load
    from tunesmith.core.errors import UsageError
    from tunesmith.core.run import LOCK

    if verb not in REPLAYABLE:
        raise UsageError("--replay", f"{verb} cannot be replayed", do=f"Replayable: {', '.join(REPLAYABLE)}")
    if not (folder / LOCK).is_file():
        raise UsageError("--replay", f"needs the folder of a {verb} run, which holds {LOCK}", got=str(folder))
    locked = files.read_object(folder / LOCK).get("config")
    if not isinstance(locked, dict):
        raise UsageError(str(folder / LOCK), "holds no config", do="Name a run folder as train has left it")
    return load(config_class(verb), locked, where=str(folder / LOCK))
