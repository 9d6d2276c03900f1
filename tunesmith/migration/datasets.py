"""The datasets of a LLaMA-Factory file as one of ours, and what becomes of the keys around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.migration.dataset_info import look_up, read_info
from tunesmith.migration.layouts import Shape
from tunesmith.migration.rows import Rows, draw
from tunesmith.migration.sheet import Sheet

KINDS = {
    "pt": "text",
    "sft": "conversation",
    "rm": "preference",
    "dpo": "preference",
    "kto": "feedback",
    "ppo": "conversation",
}
NEEDED = {"preference": ("chosen", "rejected"), "feedback": ("kto_tag",)}
"""Kind of rows -> columns without which it is none, beside the prompt."""
TRAINED, HELD_OUT = "rows.jsonl", "held_out_rows.jsonl"
Written = dict[str, Rows]
"""Name of a file -> the rows that have to be written into it."""


def read_datasets(sheet: Sheet) -> Written:
    """Fill `dataset` of train and `data` of evaluate; returns the files that they need.

    Raises DataError for a file of rows that cannot be read.
    """
    stage = str(sheet.get("stage"))
    if not {"train", "evaluate"} & set(sheet.verbs):
        _say_unused(sheet)
        return {}
    entries = read_info(sheet) if sheet.given("dataset") or sheet.given("eval_dataset") else None
    trained, held = None, None
    if entries is not None and stage in KINDS:
        trained = _rows(sheet, "dataset", entries, stage) if "train" in sheet.verbs else None
        held = _rows(sheet, "eval_dataset", entries, stage)
    for key, found in (("dataset", trained), ("eval_dataset", held)):
        if entries is not None and sheet.given(key) and not found and (key == "eval_dataset" or "train" in sheet.verbs):
            names = [f"{name}." for name in sheet.words(key)]
            why = next((v for v in sheet.verdicts if v.lost and v.key.startswith(tuple(names))), None)
            cause = f": {why.key}: {why.text}" if why else ""
            sheet.verdict(key, "not supported", f"none of its rows can be read{cause}", lost=True)
    sheet.verdict("dataset_dir", "no effect", "no rows are read here")
    if "train" in sheet.verbs and not sheet.given("dataset"):
        sheet.verdict("do_train", "wrong", "LLaMA-Factory ends with an error without dataset", lost=True)
    written: Written = {}
    if sheet.given("eval_dataset") and sheet.number("val_size"):
        sheet.verdict("val_size", "wrong", "LLaMA-Factory ends with an error beside eval_dataset; not read here")
    if trained:
        _train_on(sheet, trained, held, written)
    if "evaluate" in sheet.verbs:
        _ask(sheet, held, written)
    _say_reading(sheet)
    return written


def _rows(sheet: Sheet, key: str, entries: dict[str, Any], stage: str) -> Rows | None:
    """The rows of the datasets that a key names; None where there are none to read."""
    named = look_up(sheet, key, entries, stage)
    shape = Shape(KINDS[stage], stage == "sft" and sheet.flag("mask_history"), str(sheet.get("default_system") or ""))
    limit = int(sheet.number("max_samples")) if sheet.given("max_samples") else None
    rows = draw(named, shape, limit, int(sheet.number("seed")))
    for one, raw in rows.parts:
        wanted = ("prompt" if one.formatting == "alpaca" else "messages", *NEEDED.get(KINDS[stage], ()))
        missing = next((name for name in wanted if raw and one.columns.get(name) not in raw[0][0]), None)
        if missing:
            has = list(raw[0][0])
            looks = "sharegpt" if {"conversations", "messages"} & set(has) else "alpaca"
            do = (
                f"The rows look like formatting: {looks}"
                if looks != one.formatting
                else f"Name it in columns ({missing})"
            )
            theirs = repr(one.columns[missing]) if one.columns.get(missing) else missing
            text = f"rows have no {theirs} but {', '.join(has)}; LLaMA-Factory ends with an error. {do}"
            sheet.note(f"{one.name}.rows", "wrong", text, lost=True)
    for name, text in rows.placeholders():
        sheet.note(f"{name}.rows", "wrong", text)
    return rows if rows.count else None


def _train_on(sheet: Sheet, trained: Rows, held: Rows | None, written: Written) -> None:
    """dataset, eval_dataset and val_size. Both files of one training are read by one format."""
    own, apart = trained.own_files(), held.own_files() if held else None
    alike = own and (not held or (apart and {**own, "path": 0} == {**apart, "path": 0}))
    document = own if own and alike else _write(sheet, trained, TRAINED, written)
    origin = f"dataset: {', '.join(sheet.words('dataset'))}"
    for name, value in document.items():
        sheet.put("train", f"dataset.{name}", value, origin)
    how = "as they stand" if document is own else f"written anew into {TRAINED}"
    sheet.verdict("dataset", "became", f"dataset: {trained.count} rows, {how}, format {document['format']}")
    share = 0.0 if sheet.given("eval_dataset") else sheet.number("val_size")
    if held:
        other = apart if apart and alike else _write(sheet, held, HELD_OUT, written)
        sheet.put("train", "dataset.held_out", other["path"], f"eval_dataset: {', '.join(sheet.words('eval_dataset'))}")
        sheet.verdict("eval_dataset", "became", f"dataset.held_out: {held.count} rows")
    note = f"{share} of {trained.count} rows" if share >= 1 else "rows with one prompt stay on one side"
    held_share = min(share / trained.count, 0.99) if share >= 1 else share
    sheet.became("val_size", "evaluation.share", round(held_share, 6), note if share else "")
    if sheet.get("stage") != "pt":  # documents are laid end to end: their rows are counted when they are tokens
        sheet.train_rows = trained.count - round(trained.count * held_share)


def _write(sheet: Sheet, rows: Rows, name: str, written: Written) -> dict[str, Any]:
    """Our dataset on rows that are written anew."""
    written[name] = rows
    return {"path": [str(sheet.into / name)], "format": rows.format}


def _ask(sheet: Sheet, held: Rows | None, written: Written) -> None:
    """The questions of evaluate.yaml: eval_dataset, or what a training holds out."""
    if held:
        own = held.own_files() if HELD_OUT not in written else None
        document = own or _write(sheet, held, HELD_OUT, written)
        for name, value in document.items():
            sheet.put("evaluate", f"data.{name}", value, f"eval_dataset: {', '.join(sheet.words('eval_dataset'))}")
        sheet.verdict("eval_dataset", "became", f"data: {held.count} rows")
    elif "train" in sheet.verbs and sheet.number("val_size"):
        sheet.put("evaluate", "data.path", [sheet.outs["train"]], "val_size: what the training held out")
    elif not sheet.given("eval_dataset"):
        text = "no rows to ask: LLaMA-Factory splits them off dataset. Name them in eval_dataset"
        sheet.verdict("val_size", "not supported", text, lost=True)
        sheet.verdict(
            "do_predict", "wrong", "LLaMA-Factory ends with an error without eval_dataset or val_size", lost=True
        )
        sheet.verdict(
            "do_eval", "wrong", "LLaMA-Factory ends with an error without eval_dataset or val_size", lost=True
        )
    if "train" not in sheet.verbs:
        sheet.verdict("dataset", "no effect", "nothing is trained here")


def _say_reading(sheet: Sheet) -> None:
    """Keys that say how rows are read."""
    for key in ("max_samples", "mask_history", "default_system"):
        if sheet.given(key) and sheet.get(key) is not False:
            what = {
                "max_samples": "the first rows of every dataset",
                "mask_history": "only the last answer of a row is trained",
            }
            sheet.verdict(
                key, "became", f"{what.get(key, 'the system message of rows that have none')}, in rows written anew"
            )
    mixed, together = str(sheet.get("mix_strategy")), len(sheet.words("dataset")) > 1
    if mixed in {"concat", "interleave_once"} or not together:
        sheet.verdict("mix_strategy", "default", "all rows of all datasets, shuffled")
    else:
        sheet.unsupported(
            "mix_strategy",
            f"{mixed} leaves rows out or takes some twice",
            "Set num_samples for each dataset in dataset_info.json",
        )
    if sheet.given("interleave_probs"):
        sheet.unsupported(
            "interleave_probs", "rows are not drawn by chance", "Set num_samples for each dataset in dataset_info.json"
        )
    if sheet.flag("streaming"):
        sheet.verdict(
            "streaming",
            "not supported",
            "rows are prepared once into the run and mapped into memory, so they need disk, not memory",
        )
    if sheet.given("tokenized_path"):
        there = Path(str(sheet.get("tokenized_path"))).exists()
        text = "rows are prepared into the run from what dataset names; tunesmith prepare does it once for many runs"
        more = (
            "LLaMA-Factory finds this folder and would pass over dataset, template and cutoff_len without another word. "
            if there
            else ""
        )
        sheet.verdict("tokenized_path", "wrong" if there else "no effect", more + text)
    if "train" in sheet.verbs:
        note = (
            "longer rows lose their end and are counted, and more than dataset.max_lost of them stop the run; LLaMA-Factory cuts "
            "prompt and answer of a turn by share and leaves later turns out"
        )
        if len(sheet.typed_names("cutoff_len")) > 1 and sheet.typed["cutoff_len"] != "cutoff_len":
            note = f"{' + '.join(sheet.typed_names('cutoff_len'))}; {note}"
        sheet.became("cutoff_len", "cutoff", sheet.number("cutoff_len"), note)


def _say_unused(sheet: Sheet) -> None:
    for key in (
        "dataset",
        "eval_dataset",
        "dataset_dir",
        "max_samples",
        "val_size",
        "tokenized_path",
        "default_system",
    ):
        sheet.verdict(key, "no effect", "no rows are read here")
