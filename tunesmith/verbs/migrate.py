"""Turn a LLaMA-Factory YAML into configs of Tunesmith and explain every key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.core.config import Config
from tunesmith.core.errors import UsageError

if TYPE_CHECKING:
    from tunesmith.core.artifacts import Migration
    from tunesmith.core.run import Run
    from tunesmith.migration.llamafactory import Migrated

SUBJECT = "source"
EXPLAINED = "explained.md"
FOLDERS = {"train": "output_dir", "export": "export_dir"}
"""Verb -> the key by which a LLaMA-Factory file names the folder of its result."""


class MigrateConfig(Config):
    """Which file, and what to do with what cannot be kept."""

    source: str
    """A YAML or JSON file of LLaMA-Factory, of any year; the datasets it names are found through its dataset_info.json."""
    lost: Literal["refuse", "leave"] = "refuse"
    """What to do where the file asks for something that cannot be kept, so that the result would be another one: refuse
    writes explained.md and no config and ends with exit code 2, leave writes the configs without it."""


def preview(config: MigrateConfig) -> str:
    """What would happen, in words."""
    return f"read {config.source} as LLaMA-Factory does, write our configs and {EXPLAINED}, {config.lost} what cannot be kept"


def run(config: MigrateConfig, run: Run) -> Migration:
    """Write `<verb>.yaml` for all that the file asks for, `explained.md`, and rows that no reader of ours takes as they are.

    Where something would be lost, a UsageError is left in `run.unproven`. Raises UsageError for a file that is not
    LLaMA-Factory's, DataError for rows that cannot be read.
    """
    from tunesmith.core import files
    from tunesmith.migration.told import as_markdown, as_yaml, command

    migrated = translate(Path(config.source), run.folder)
    files.write_text(run.folder / EXPLAINED, as_markdown(migrated))
    _tell(migrated, run)
    if migrated.lost and config.lost == "refuse":
        run.unproven = _refusal(migrated, f"See {run.folder / EXPLAINED}, then change the file or give --lost leave")
        return _made(migrated, run, {})
    check(migrated)
    for name, rows in migrated.rows.items():
        files.write_jsonl(run.folder / name, rows.converted())
    configs = {verb: run.folder / f"{verb}.yaml" for verb in migrated.documents}
    for verb, path in configs.items():
        files.write_text(path, as_yaml(migrated, verb))
        run.say(f"config    {command(migrated, verb, run.folder)}")
    return _made(migrated, run, configs)


def _made(migrated: Migrated, run: Run, configs: dict[str, Path]) -> Migration:
    from tunesmith.core.artifacts import Migration
    from tunesmith.migration.told import counts

    return Migration(
        source=migrated.source, configs={verb: str(path) for verb, path in configs.items()}, explained=run.folder / EXPLAINED,
        counts={str(outcome): count for outcome, count in counts(migrated).items()},
        lost=[verdict.key for verdict in migrated.lost], outs=migrated.outs,
        rows={name: rows.count for name, rows in migrated.rows.items()} if configs else {},
    )  # fmt: skip


def translate(source: Path, into: Path) -> Migrated:
    """What became of a file; nothing is written. `into` is where rows would be written."""
    from tunesmith import verbs
    from tunesmith.core.config import read_yaml
    from tunesmith.migration.llamafactory import VERBS, read
    from tunesmith.migration.sheet import Ours

    document = read_yaml(source)  # JSON is YAML
    return read(document, source, Ours({verb: verbs.config_class(verb) for verb in VERBS}), into)


def check(migrated: Migrated) -> None:
    """Raise UsageError for a value that our option does not take, in the words of the config."""
    from tunesmith import verbs
    from tunesmith.core.config import load

    for verb, document in migrated.documents.items():
        load(verbs.config_class(verb), document, where=str(migrated.source))


def adopt(
    verb: str, source: Path, document: dict[str, Any], out: str | None, *, dry: bool = False, **voice: Any
) -> tuple[dict[str, Any], str | None]:
    """A YAML that was given to another verb: as it is, or made of a LLaMA-Factory file by a migration beside the run.

    Returns our document and the folder for the run (the file's own where none is given). `dry` writes nothing, `voice` is
    how the migration speaks. Raises UsageError where the file does not ask for this verb, or something would be lost.
    """
    from tunesmith import verbs
    from tunesmith.core.config import read_yaml
    from tunesmith.migration.llamafactory import VERBS, is_llamafactory

    if verb not in (*VERBS, "plan") or not is_llamafactory(document):
        return document, out
    beside = _beside(out or str(document.get(FOLDERS.get(verb, "")) or f"runs/{source.stem}"))
    if dry:
        migrated = translate(source, beside)
        if migrated.lost:
            raise _refusal(migrated, f"tunesmith migrate {source} explains it")
        return _for_verb(verb, _asked(verb, source, migrated.documents)), out
    made, _ = verbs.perform("migrate", MigrateConfig(source=str(source)), beside, **voice)
    return _for_verb(verb, read_yaml(Path(_asked(verb, source, made.configs)))), out or made.outs.get(verb)


def _beside(run: str) -> Path:
    """A folder for the migration that is not there yet: a second try does not stumble over the first."""
    names = (Path(f"{run}-migrated{'' if n == 1 else f'-{n}'}") for n in range(1, 1000))
    return next(path for path in names if not path.exists())


def _asked(verb: str, source: Path, found: dict[str, Any]) -> Any:
    """What was made for a verb; a plan is one of the training."""
    asked = "train" if verb == "plan" else verb
    if asked not in found:
        do = f"tunesmith {next(iter(found))} {source}"
        raise UsageError(str(source), f"asks for {' and '.join(found)}, not for {verb}", do=do)
    return found[asked]


def _for_verb(verb: str, document: dict[str, Any]) -> dict[str, Any]:
    """The document, for a plan without what a plan does not ask."""
    from tunesmith import verbs
    from tunesmith.core.config import options

    if verb != "plan":
        return document
    known = {option.path for option in options(verbs.config_class(verb))}
    sections = {name: value for name, value in document.items() if isinstance(value, dict)}
    kept = {name: {k: v for k, v in inner.items() if f"{name}.{k}" in known} for name, inner in sections.items()}
    plain = {name: value for name, value in document.items() if name in known}
    return plain | {name: inner for name, inner in kept.items() if inner}


def _refusal(migrated: Migrated, do: str) -> UsageError:
    first, *others = migrated.lost
    more = f" ({len(others)} more: {', '.join(verdict.key for verdict in others)})" if others else ""
    return UsageError(f"{migrated.source}: {first.key}", f"{first.text.rstrip('.')}{more}", got=first.value, do=do)


def _tell(migrated: Migrated, run: Run) -> None:
    from tunesmith.migration.told import MEANING, counts

    run.say(f"{migrated.source} is a file of LLaMA-Factory; it asks for: {', '.join(migrated.documents)}")
    for outcome, count in counts(migrated).items():
        if count:
            run.say(f"{count:>9} {MEANING[outcome]}")
    for verdict in migrated.verdicts:
        if verdict.outcome == "became":
            run.say(f"  {verdict.key} -> {verdict.text}", style="dim")
        elif verdict.outcome in {"wrong", "not supported"}:
            run.warn(f"{verdict.key}: {verdict.text}")
    if migrated.implied:
        said = ", ".join(f"{one.path} {one.value}" for one in migrated.implied)
        run.say(f"  LLaMA-Factory's own defaults, written down: {said}", style="dim")
    run.say(f"explained {run.folder / EXPLAINED}")
