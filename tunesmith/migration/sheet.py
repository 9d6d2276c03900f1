"""A LLaMA-Factory file while it is read: what it says by today's names, our documents so far, a verdict for every key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunesmith.core.config import Config, Option, options
from tunesmith.core.errors import UsageError, did_you_mean
from tunesmith.migration.groups import Group, grouped
from tunesmith.migration.names import ASKED, MAPPED, RENAMED

Outcome = Literal["became", "default", "no effect", "not supported", "wrong"]
OWNERS = ("stage", "finetuning_type", "pref_loss", "do_train", "dataset_dir", "dataset", "eval_dataset")
"""Keys on which others depend: where one cannot be kept, nobody has asked for what belongs to it."""
TRUTHS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
"""Words that YAML 1.1, which LLaMA-Factory reads, takes for true and false."""
SECRETS = ("token", "api_key", "secret", "webhook")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one key."""

    key: str
    """As it is typed; `NAME.field` for a field of dataset_info.json."""
    value: Any
    outcome: Outcome
    text: str
    lost: bool = False
    """Whether the file asks for something that cannot be kept, so that the result would be another one."""


@dataclass(frozen=True, slots=True)
class Implied:
    """What LLaMA-Factory takes where the file says nothing, and Tunesmith would not."""

    key: str
    path: str
    value: Any


class Ours:
    """Our options and their defaults, by verb: `read` is told them, since workshops do not know verbs."""

    def __init__(self, configs: Mapping[str, type[Config]]) -> None:
        self._options: dict[str, list[Option]] = {verb: list(options(config)) for verb, config in configs.items()}

    def option(self, verb: str, path: str, kind: str = "") -> Option | None:
        """The option at a dotted path, for a kind of its section; None where there is none."""
        fitting = [option for option in self._options[verb] if option.path == path]
        return next((option for option in fitting if option.kind in {"", kind}), None)


@dataclass
class Sheet:
    """The file, and what was made of it so far."""

    raw: dict[str, Any]
    """The file as it is."""
    said: dict[str, Any]
    """By today's names."""
    typed: dict[str, str]
    """Today's name -> the name in the file."""
    ours: Ours
    folder: Path
    """The folder of the file; where data is looked for after the working folder."""
    into: Path
    """Where rows that have to be written will lie."""
    verbs: tuple[str, ...] = ()
    """What the file asks for, in the order in which it is done."""
    active: set[str] = field(default_factory=set)
    """Which of ASKED holds for this file."""
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    origins: dict[tuple[str, str], str] = field(default_factory=dict)
    """(verb, dotted option) -> where its value comes from."""
    verdicts: list[Verdict] = field(default_factory=list)
    implied: list[Implied] = field(default_factory=list)
    outs: dict[str, str] = field(default_factory=dict)
    """Verb -> the folder that the file wants its result in."""
    train_rows: int | None = None
    """Rows that will be trained, where they could be counted."""

    def given(self, key: str) -> bool:
        """Whether the file names a key, with another value than null."""
        return self.said.get(key) is not None

    def get(self, key: str) -> Any:
        """The value of a key, or what LLaMA-Factory takes without it."""
        return self.said[key] if self.given(key) else MAPPED[key].default

    def flag(self, key: str) -> bool:
        """A key that is true or false. Raises UsageError for anything else."""
        value = self.get(key)
        if value not in (True, False):
            raise UsageError(self.typed.get(key, key), "must be true or false", got=value)
        return bool(value)

    def number(self, key: str) -> float:
        """A number, whole ones as int. Raises UsageError for anything else."""
        value = self.get(key)
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise UsageError(self.typed.get(key, key), "must be a number", got=value) from None
        return int(number) if number.is_integer() and not isinstance(value, float) else number

    def words(self, key: str) -> tuple[str, ...]:
        """A list, or text with commas, as LLaMA-Factory takes either."""
        value = self.get(key)
        parts = value if isinstance(value, list) else str(value).split(",") if value is not None else []
        return tuple(str(part).strip() for part in parts if str(part).strip())

    def steps_an_epoch(self) -> int | None:
        """Optimizer steps in one pass over the trained rows; None where they could not be counted."""
        each = int(self.number("per_device_train_batch_size") * self.number("gradient_accumulation_steps"))
        each *= max(1, int(self.number("ray_num_workers")))
        return -(-self.train_rows // each) if self.train_rows is not None and each > 0 else None

    def put(self, verb: str, path: str, value: Any, origin: str = "") -> bool:
        """Write into our document what differs from our default. Returns whether it does; raises KeyError for no option."""
        section = path.split(".", maxsplit=1)[0]
        document = self.documents.setdefault(verb, {})
        chosen = document.get(section, {}).get("kind") if isinstance(document.get(section), dict) else None
        standard = self.ours.option(verb, f"{section}.kind")
        option = self.ours.option(verb, path, chosen or (standard.default if standard else ""))
        if option is None:
            raise KeyError(f"{verb} has no option {path}")
        if not option.required and _same(option.default, value) and not path.endswith(".kind"):
            return False
        *sections, name = path.split(".")
        for part in sections:
            document = document.setdefault(part, {})
        document[name] = value
        self.origins[verb, path] = origin
        return True

    def became(self, key: str, path: str, value: Any, note: str = "", *, verb: str = "train") -> None:
        """Say that a key is an option of ours with this value, and write it; without the key, that its default is."""
        origin = (
            f"{self.typed[key]}: {_plain(self.said[key])}" if self.given(key) else f"{key}, LLaMA-Factory's default"
        )
        differs = self.put(verb, path, value, origin)
        if self.given(key):
            text = f"{path}: {_plain(value)}" + (f"; {note}" if note else "")
            self.verdict(key, "became" if differs else "default", text)
        elif differs:
            self.implied.append(Implied(key, path, value))

    def verdict(self, key: str, outcome: Outcome, text: str, *, lost: bool = False) -> None:
        """Note what became of a key, where the file has it, under every name it has there.

        The first word counts; a later one is added where it says that something is wrong or lost.
        """
        for typed in self.typed_names(key):
            old = f"{key} today; " if typed != key else ""
            self.note(typed, outcome, old + text, value=self._shown(typed, key), lost=lost)

    def note(self, name: str, outcome: Outcome, text: str, *, value: Any = None, lost: bool = False) -> None:
        """A verdict on something by its name in the file, or on what a file that it names holds."""
        place = next((n for n, verdict in enumerate(self.verdicts) if verdict.key == name), None)
        if place is None:
            self.verdicts.append(Verdict(name, value, outcome, text, lost))
            return
        known = self.verdicts[place]
        if (lost or outcome == "wrong") and text not in known.text:
            worse = known if known.lost or known.outcome == "wrong" else Verdict(name, value, outcome, text, lost)
            said = text if worse is not known else f"{known.text.rstrip('.')}. {text}"
            self.verdicts[place] = Verdict(name, known.value, worse.outcome, said, known.lost or lost)

    def unsupported(self, key: str, why: str, do: str = "") -> None:
        """A wish that cannot be kept: the result would be another one."""
        self.verdict(key, "not supported", why + (f". {do}" if do else ""), lost=True)

    def typed_names(self, key: str) -> list[str]:
        """The names under which the file gives a key."""
        return [name for name in self.raw if RENAMED.get(name, name) == key]

    def _shown(self, typed: str, key: str) -> Any:
        secret = any(word in typed or word in key for word in SECRETS) and isinstance(self.raw.get(typed), str)
        return "***" if secret else self.raw.get(typed)


def open_sheet(document: Mapping[str, Any], folder: Path, ours: Ours, into: Path) -> Sheet:
    """The file by today's names. Older names become newer ones, and two that mean one are told apart."""
    sheet = Sheet(dict(document), {}, {}, ours, folder, into)
    defaults = {**{key: name.default for key, name in MAPPED.items()}, **{k: d for k, (_, d) in grouped().items()}}
    for name, typed in document.items():
        key = RENAMED.get(name, name)
        is_truth = isinstance(typed, str) and isinstance(defaults.get(key), bool)
        value = TRUTHS.get(str(typed).lower(), typed) if is_truth else typed
        if key not in sheet.said or sheet.said[key] is None:
            sheet.said[key], sheet.typed[key] = value, name
    lengths = [document.get(name) for name in ("max_source_length", "max_target_length")]
    if "cutoff_len" not in document and any(lengths):
        sheet.said["cutoff_len"] = sum(length or 0 for length in lengths)
    if "resume_lora_training" in document and "create_new_adapter" not in document:
        sheet.said["create_new_adapter"] = document["resume_lora_training"] is False
    return sheet


def settle(sheet: Sheet) -> None:
    """Give a verdict to every key that no rule has spoken of: groups, keys that are not read here, names that are unknown."""
    groups = grouped()
    for name in [n for n in sheet.said if n not in {RENAMED.get(v.key, v.key) for v in sheet.verdicts}]:
        value = sheet.said[name]
        if isinstance(value, str) and "${" in value:
            sheet.unsupported(name, "${...} is filled in by LLaMA-Factory's own reader", "Write the value")
        elif name in groups:
            _settle_group(sheet, name, *groups[name])
        elif name not in MAPPED:
            known = [*MAPPED, *groups, *RENAMED]
            hint = did_you_mean(str(name), known)
            hint = hint if hint.startswith("Did") else "LLaMA-Factory ends with an error here"
            sheet.verdict(name, "wrong", f"no key of LLaMA-Factory. {hint}", lost=True)
        elif not sheet.given(name) or _same(value, MAPPED[name].default):
            sheet.verdict(name, "default", "what LLaMA-Factory takes without it")
        else:
            _settle_mapped(sheet, name)


def _settle_mapped(sheet: Sheet, name: str) -> None:
    """A key that has a counterpart, and is not read in this file: what it belongs to is not asked for, or cannot be kept."""
    needs = MAPPED[name].needs
    if needs and needs not in sheet.active:
        sheet.verdict(name, "no effect", f"read only with {ASKED[needs]}, by LLaMA-Factory too")
        return
    gone = [
        verdict.key for verdict in sheet.verdicts if verdict.lost and RENAMED.get(verdict.key, verdict.key) in OWNERS
    ]
    assert gone, f"no rule has spoken of {name}"
    sheet.verdict(name, "not supported", f"belongs to {gone[0]}, which cannot be kept")


def _settle_group(sheet: Sheet, name: str, group: Group, default: Any) -> None:
    value, do = sheet.said[name], f". {group.do}" if group.do else ""
    if value is None or _same(value, default):
        sheet.verdict(name, "default", "what LLaMA-Factory takes without it")
    elif group.switch and not sheet.said.get(group.switch):
        sheet.verdict(name, "no effect", f"read only with {group.switch}, by LLaMA-Factory too")
    elif group.lost or group.missed:
        sheet.verdict(name, "not supported", group.why + do, lost=group.lost)
    else:
        sheet.verdict(name, "no effect", group.why + do)


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return list(left) == list(right)
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def _plain(value: Any) -> str:
    from tunesmith.core.manual import plain

    return plain(value)
