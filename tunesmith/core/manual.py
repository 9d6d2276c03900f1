"""Help text and commented template of a Config: its fields and their docstrings, written out for a person."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from typing import Any

from tunesmith.core.config import Config, Option, options


def plain(value: Any) -> str:
    """A default as it stands in YAML and in help texts."""
    if isinstance(value, Config):
        value = value.model_dump(mode="json")
    if isinstance(value, tuple | list):
        return "[" + ", ".join(plain(item) for item in value) + "]"
    if isinstance(value, str):
        return value if value and value.strip() == value and ": " not in value else json.dumps(value)
    return "null" if value is None else json.dumps(value, default=str)


def help_text(verb: str, summary: str, subject: str, config: type[Config], flags: Mapping[str, str]) -> str:
    """Every option of a verb with type, default and docstring."""
    lines = [summary, "", f"  tunesmith {verb} [config.yaml | {subject.upper()}] [--option VALUE]... [--out DIR]", ""]
    for option in options(config):
        default = "required" if option.required else f"default {plain(option.default)}"
        only = f", for {option.kind}" if option.kind else ""
        lines.append(f"  --{option.path}  ({option.type}; {default}{only})")
        lines += textwrap.wrap(option.help, 100, initial_indent="      ", subsequent_indent="      ")
    lines += ["", "  --out DIR  the run folder (default runs/<verb>-<time>)"]
    lines += [f"  --{name}  {text}" for name, text in flags.items()]
    return "\n".join(lines)


def template(verb: str, config: type[Config]) -> str:
    """A YAML that loads as it is once the required options are filled in; other kinds of a shelf stand as comments."""
    lines = [f"# tunesmith {verb} THIS-FILE.yaml"]
    open_sections: list[str] = []
    chosen: dict[str, Any] = {}
    for option in options(config):
        *sections, name = option.path.split(".")
        if name == "kind" and not option.kind:
            chosen[".".join(sections)] = option.default
        for depth, section in enumerate(sections):
            if open_sections[: depth + 1] != sections[: depth + 1]:
                lines.append(f"{'  ' * depth}{section}:")
                open_sections = sections[: depth + 1]
        open_sections = sections
        lines += _entry(option, name, "  " * len(sections), chosen.get(".".join(sections)))
    return "\n".join(lines) + "\n"


def _entry(option: Option, name: str, indent: str, kind: Any) -> list[str]:
    helped = textwrap.wrap(f"{option.help} ({option.type})", 100 - len(indent))
    hidden = "# " if option.kind and option.kind != kind else ""
    only = f"   # for {option.kind}" if hidden else ""
    value = "   # required" if option.required else f" {plain(option.default)}"
    return [*(f"{indent}# {line}" for line in helped), f"{indent}{hidden}{name}:{value}{only}"]
