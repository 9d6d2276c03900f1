"""dataset_info.json: where a named dataset lies and how its rows look, with a verdict on every field of the ones that are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.core.errors import DataError, did_you_mean
from tunesmith.core.files import read_object
from tunesmith.data.rows import ENDINGS
from tunesmith.migration.layouts import ALL_COLUMNS, COLUMNS, TAGS, Named
from tunesmith.migration.sheet import Sheet

FILE = "dataset_info.json"
MEANT = {"format": "formatting", "column": "columns", "tag": "tags", "file": "file_name", "filename": "file_name"}
"""What people write for a field. LLaMA-Factory passes over it without a word."""
ELSEWHERE = {
    "hf_hub_url": "on Hugging Face", "ms_hub_url": "on ModelScope", "om_hub_url": "on Modelers", "script_url": "a program",
    "cloud_file_name": "in a bucket",
}  # fmt: skip
FIELDS = (
    *ELSEWHERE,
    "file_name",
    "file_sha1",
    "formatting",
    "ranking",
    "subset",
    "split",
    "folder",
    "num_samples",
    "columns",
    "tags",
)
LAYOUTS = ("alpaca", "sharegpt", "openai")
MEDIA = ("images", "videos", "audios")


def read_info(sheet: Sheet) -> dict[str, Any] | None:
    """The entries by name; None, with a verdict, where there is no such file."""
    where = sheet.get("dataset_dir")
    if isinstance(where, dict):
        sheet.verdict("dataset_dir", "became", "dataset, from what stands in the file")
        return where
    if where == "ONLINE" or str(where).startswith("REMOTE:"):
        do = "Download the files and name their folder"
        sheet.unsupported("dataset_dir", "rows are read from files", do)
        return None
    folder = next((f for f in (Path(where), sheet.folder / where) if (f / FILE).is_file()), None)
    if folder is None:
        text = f"no {FILE} in {where}, seen from here or from the file. Start where LLaMA-Factory is started, or name the folder"
        key = "dataset_dir" if sheet.given("dataset_dir") else "dataset"
        sheet.verdict(key, "wrong", text, lost=True)
        return None
    sheet.verdict("dataset_dir", "became", f"dataset, from {folder / FILE}")
    entries = read_object(folder / FILE)
    return {name: {**entry, "": folder} if isinstance(entry, dict) else entry for name, entry in entries.items()}


def look_up(sheet: Sheet, key: str, entries: dict[str, Any], stage: str) -> list[Named]:
    """The datasets that a key names and that can be read; a verdict for those that cannot."""
    found = []
    for name in sheet.words(key):
        if name not in entries:
            hint = did_you_mean(name, list(entries))
            sheet.verdict(key, "wrong", f"{name} is not in {FILE}. {hint}", lost=True)
        elif not isinstance(entries[name], dict):
            sheet.verdict(key, "wrong", f"{name} in {FILE} is no object", lost=True)
        else:
            named = _Entry(sheet, name, dict(entries[name])).read(stage)
            found += [named] if named else []
    return found


class _Entry:
    """One entry on its way to a Named: every field gets a verdict."""

    def __init__(self, sheet: Sheet, name: str, fields: dict[str, Any]) -> None:
        self.sheet, self.name = sheet, name
        self.folder: Path = fields.pop("", Path())
        self.fields = {MEANT.get(field, field): value for field, value in reversed(fields.items())}
        self._check_types()
        for field, value in fields.items():
            if field in MEANT:
                self.say(
                    field,
                    "wrong",
                    f"LLaMA-Factory passes over it without a word: {MEANT[field]} is meant, and read as that",
                    value=value,
                )
            elif field not in FIELDS:
                hint = did_you_mean(field, FIELDS)
                meant = hint.startswith("Did")
                text = (
                    f"no field of {FILE}; LLaMA-Factory passes over it without a word. {hint if meant else ''}".strip()
                )
                self.say(field, "wrong" if meant else "no effect", text, value=value, lost=meant)

    def _check_types(self) -> None:
        """Raise DataError for a field that holds what no version of LLaMA-Factory takes."""
        names = (str, type(None))
        for field, fits, what in (
            ("columns", lambda it: isinstance(it, dict) and all(isinstance(v, names) for v in it.values()), "an object of names"),
            ("tags", lambda it: isinstance(it, dict) and all(isinstance(v, names) for v in it.values()), "an object of words"),
            ("ranking", lambda it: isinstance(it, bool), "true or false, without quotes"),
            ("num_samples", lambda it: type(it) is int and it > 0, "a whole number above 0"),
            ("file_name", lambda it: isinstance(it, str) and it, "the name of a file or folder"),
        ):  # fmt: skip
            value = self.fields.get(field)
            if value is not None and not fits(value):
                raise DataError(f"{self.folder / FILE}: {self.name}.{field}", f"must be {what}", got=value)

    def say(self, field: str, outcome: Any, text: str, *, value: Any = None, lost: bool = False) -> None:
        value = self.fields.get(field) if value is None else value
        self.sheet.note(f"{self.name}.{field}", outcome, text, value=value, lost=lost)

    def read(self, stage: str) -> Named | None:
        files = self._files()
        layout = self.fields.get("formatting") or "alpaca"
        ranking = bool(self.fields.get("ranking"))
        if layout not in LAYOUTS:
            self.say("formatting", "wrong", f"must be one of {', '.join(LAYOUTS)}", lost=True)
            return None
        pairs = stage in {"rm", "dpo"}
        if ranking != pairs:
            text = f"LLaMA-Factory ends with an error: stage {stage} takes rows {'with' if pairs else 'without'} ranking: true"
            self.say("ranking", "wrong", text, lost=True)
            return None
        columns, tags = self._columns(layout), self._tags()
        self._say_rest(layout)
        samples = self.fields.get("num_samples")
        return Named(self.name, files, layout, ranking, columns, tags, samples) if files else None

    def _files(self) -> tuple[Path, ...]:
        elsewhere = [field for field in ELSEWHERE if field in self.fields]
        typed = self.fields.get("file_name")
        path = self.folder / str(typed) if typed else None
        if path is None or not path.exists():
            for field in elsewhere:
                do = f"Download it, and write file_name beside it in {FILE}"
                self.say(field, "not supported", f"{ELSEWHERE[field]}: rows are read from files. {do}", lost=True)
            if not elsewhere:
                self.say("file_name", "wrong", f"no such file: {path}" if path else "is missing", lost=True)
            return ()
        for field in elsewhere:
            self.say(field, "no effect", f"{path} is taken; LLaMA-Factory would take {field} first")
        files = tuple(sorted(path.iterdir())) if path.is_dir() else (path,)
        strange = [file for file in files if file.suffix not in ENDINGS]
        if strange:
            self.say(
                "file_name",
                "not supported",
                f"{strange[0].name} is of no kind that is read: {', '.join(ENDINGS)}",
                lost=True,
            )
            return ()
        if not files:
            self.say("file_name", "wrong", f"{path} is an empty folder", lost=True)
            return ()
        self.say("file_name", "became", f"dataset.path: {path}")
        return files

    def _columns(self, layout: str) -> dict[str, str | None]:
        given = self.fields.get("columns")
        if given is None:
            return dict(COLUMNS)
        for column in given:
            if column not in ALL_COLUMNS:
                hint = did_you_mean(column, ALL_COLUMNS)
                self.say("columns", "wrong", f"no column of LLaMA-Factory: {column}. {hint}", lost=True)
        if any(given.get(medium) for medium in MEDIA):
            self.say(
                "columns", "not supported", "pictures, films and sound are not trained. Take rows of text", lost=True
            )
        unread = [] if layout != "alpaca" else [c for c in ("query", "system", "history") if c not in given]
        note = f"; not read, since columns is given: {', '.join(unread)}" if unread else ""
        self.say("columns", "became", f"dataset.columns, or converted rows{note}")
        return {column: given.get(column) for column in ALL_COLUMNS}

    def _tags(self) -> dict[str, str]:
        given = self.fields.get("tags") or {}
        for tag in given:
            if tag not in TAGS:
                self.say("tags", "wrong", f"no tag of LLaMA-Factory: {tag}. {did_you_mean(tag, list(TAGS))}", lost=True)
        if given:
            missing = [tag for tag in TAGS if tag not in given]
            note = f"; LLaMA-Factory takes no default for {', '.join(missing)} once tags is given and drops rows that have them, here they are read" if missing else ""  # fmt: skip
            self.say("tags", "became", f"read into roles{note}")
        return {**TAGS, **given}

    def _say_rest(self, layout: str) -> None:
        thinking = (
            "; LLaMA-Factory writes 'detailed thinking off' into the system message of such rows, Tunesmith does not"
        )
        self.say_given("formatting", "became", f"dataset.format: {layout}{thinking if layout == 'openai' else ''}")
        self.say_given("ranking", "became", "dataset.format: preference")
        self.say_given("file_sha1", "no effect", "the ledger of the run holds a sha256 of the rows")
        self.say_given("subset", "no effect", "belongs to a hub")
        self.say_given("folder", "no effect", "belongs to a hub")
        split = self.fields.get("split")
        if split not in {None, "train"}:
            self.say("split", "not supported", "a file has one split. Write the rows you mean into a file", lost=True)
        self.say_given("split", "default", "a file has one split")
        self.say_given("num_samples", "became", "so many rows, drawn by the seed into rows.jsonl")

    def say_given(self, field: str, outcome: Any, text: str) -> None:
        if field in self.fields:
            self.say(field, outcome, text)
