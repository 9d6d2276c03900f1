"""A migration in words: configs with a comment on every line, and the table key by key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml

from tunesmith.core.manual import plain
from tunesmith.migration.llamafactory import Migrated
from tunesmith.migration.sheet import Outcome, Verdict

MEANING: dict[Outcome, str] = {
    "wrong": "what the file or LLaMA-Factory does wrong",
    "not supported": "no counterpart",
    "became": "became an option",
    "no effect": "nothing to carry over",
    "default": "the same without it",
}
assert set(MEANING) == set(get_args(Outcome))


def as_yaml(migrated: Migrated, verb: str) -> str:
    """One of our configs; every line says which key it comes from, and what is lost stands below."""
    head = [
        f"# {command(migrated, verb)}",
        f"# Made of {migrated.source.name}, a file of LLaMA-Factory; explained.md says key by key how.",
    ]
    origins = {path: origin for (asked, path), origin in migrated.origins.items() if asked == verb}
    lines = list(_lines(migrated.documents[verb], origins))
    lost = [f"# lost: {verdict.key}: {plain(verdict.value)} ({verdict.text})" for verdict in migrated.lost]
    return "\n".join([*head, *lines, *lost, ""])


def command(migrated: Migrated, verb: str, folder: Path = Path()) -> str:
    """How the config of a verb, which lies in `folder`, is run."""
    out = migrated.outs.get(verb)
    return f"tunesmith {verb} {folder / f'{verb}.yaml'}" + (f" --out {out}" if out else "")


def _lines(document: Mapping[str, Any], origins: Mapping[str, str], before: str = "") -> Iterator[str]:
    indent = "  " * before.count(".")
    for name, value in document.items():
        path = f"{before}{name}"
        if isinstance(value, Mapping) and path not in origins:
            yield f"{indent}{name}:"
            yield from _lines(value, origins, f"{path}.")
        else:
            flow = (
                yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9)
                .removesuffix("...\n")
                .strip()
            )
            origin = " ".join(origins.get(path, "").split())
            yield f"{indent}{name}: {flow}" + (f"  # {origin}" if origin else "")


def as_markdown(migrated: Migrated) -> str:
    """The table key by key, what goes without saying, and what to run."""
    lines = [f"# {migrated.source.name}, key by key", ""]
    lines += [f"{count} {MEANING[outcome]} ({outcome})." for outcome, count in counts(migrated).items() if count]
    if migrated.lost:
        lines += [
            "",
            "**Lost** (the result would be another one): "
            + ", ".join(f"`{verdict.key}`" for verdict in migrated.lost)
            + ".",
        ]
    for outcome in MEANING:
        found = [verdict for verdict in migrated.verdicts if verdict.outcome == outcome]
        if found:
            lines += [
                "",
                f"## {outcome[0].upper()}{outcome[1:]}",
                "",
                "| key | value | |",
                "| --- | --- | --- |",
                *map(_row, found),
            ]
    if migrated.implied:
        lines += [
            "",
            "## What the file does not say",
            "",
            "LLaMA-Factory has other defaults than Tunesmith. They are written down:",
            "",
        ]
        lines += ["| key | becomes |", "| --- | --- |"]
        lines += [f"| `{one.key}` | `{one.path}: {_cell(one.value)}` |" for one in migrated.implied]
    lines += ["", "## Run it", "", "```bash", *(command(migrated, verb) for verb in migrated.documents), "```", ""]
    return "\n".join(lines)


def _row(verdict: Verdict) -> str:
    mark = "**lost**: " if verdict.lost else ""
    return f"| `{verdict.key}` | `{_cell(verdict.value)}` | {mark}{verdict.text.replace('|', chr(92) + '|')} |"


def _cell(value: Any) -> str:
    text = " ".join(plain(value).split()).replace("|", "\\|").replace("`", "'")
    return text if len(text) <= 80 else f"{text[:79]}…"


def counts(migrated: Migrated) -> dict[Outcome, int]:
    """How many keys had each outcome."""
    return {outcome: sum(verdict.outcome == outcome for verdict in migrated.verdicts) for outcome in MEANING}
