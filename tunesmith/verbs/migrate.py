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


class MigrateConfig(Config):
    """Which file, and what to do with what cannot be kept."""

    source: str
    """A YAML or JSON file of LLaMA-Factory, of any year; the datasets it names are found through its dataset_info.json."""
    lost: Literal["refuse", "leave"] = "refuse"
    """What to do where the file asks for something that cannot be kept, so that the result would be another one: refuse
    writes explained.md and ends with exit code 2, leave writes the configs without it."""


def preview(config: MigrateConfig) -> str:
    """What would happen, in words."""
    return f"read {config.source} as LLaMA-Factory does, write our configs and {EXPLAINED}, {config.lost} what cannot be kept"


def run(config: MigrateConfig, run: Run) -> Migration:
    """Write `<verb>.yaml` for all that the file asks for, `explained.md`, and rows that no reader of ours takes as they are.

    Raises UsageError where something would be lost, once explained.md is written; and for a file that is not LLaMA-Factory's.
    """
    from tunesmith.core import files
    from tunesmith.core.artifacts import Migration
    from tunesmith.migration.told import as_markdown, as_yaml, command, counts

    migrated = translate(Path(config.source), run.folder)
    files.write_text(run.folder / EXPLAINED, as_markdown(migrated))
    _tell(migrated, run)
    if migrated.lost and config.lost == "refuse":
        raise _refusal(migrated, f"See {run.folder / EXPLAINED}, then change the file or give --lost leave")
    check(migrated)
    for name, rows in migrated.rows.items():
        files.write_jsonl(run.folder / name, rows.converted())
    for verb in migrated.documents:
        files.write_text(run.folder / f"{verb}.yaml", as_yaml(migrated, verb))
        run.say(f"config    {command(migrated, verb, run.folder)}")
    return Migration(
        source=Path(config.source), configs={verb: str(run.folder / f"{verb}.yaml") for verb in migrated.documents},
        explained=run.folder / EXPLAINED, counts={str(outcome): count for outcome, count in counts(migrated).items()},
        lost=[verdict.key for verdict in migrated.lost], rows={name: rows.count for name, rows in migrated.rows.items()},
        outs=migrated.outs,
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
    verb: str, source: Path, document: dict[str, Any], out: str | None, **how: Any
) -> tuple[dict[str, Any], str | None]:
    """A YAML that was given to another verb: as it is, or made of a LLaMA-Factory file by a migration beside the run.

    Returns our document and the folder for the run (LLaMA-Factory's own where none is given). `how` goes to the migration's run;
    `dry` writes nothing. Raises UsageError where the file does not ask for this verb.
    """
    from tunesmith import verbs
    from tunesmith.core.config import read_yaml
    from tunesmith.migration.llamafactory import VERBS, is_llamafactory

    if verb not in VERBS or not is_llamafactory(document):
        return document, out
    if how.pop("dry", False):
        migrated = translate(source, Path(f"{out}-migrated" if out else "runs/migrate-TIME"))
        if migrated.lost:
            raise _refusal(migrated, f"tunesmith migrate {source} explains it")
        return _asked(verb, source, migrated.documents), out
    made, folder = verbs.perform(
        "migrate", MigrateConfig(source=str(source)), f"{out}-migrated" if out else None, **how
    )
    _asked(verb, source, made.configs)
    return read_yaml(folder / f"{verb}.yaml"), out or made.outs.get(verb)


def _asked(verb: str, source: Path, found: dict[str, Any]) -> Any:
    if verb not in found:
        raise UsageError(
            str(source), f"asks for {' and '.join(found)}, not for {verb}", do=f"tunesmith {next(iter(found))} {source}"
        )
    return found[verb]


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
