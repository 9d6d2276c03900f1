"""How many processes train, and what each of them holds: deepspeed, fsdp, ray_num_workers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tunesmith.core.files import read_object
from tunesmith.migration.sheet import Sheet

USUAL = re.compile(r"ds_z([0-3])(_offload)?_config")
"""The names of the files that LLaMA-Factory brings along, for where they lie no more."""


def read_processes(sheet: Sheet) -> None:
    """devices of a training. Raises DataError for a DeepSpeed file that is no JSON."""
    if "train" not in sheet.verbs:
        return
    workers, fsdp = int(sheet.number("ray_num_workers")), bool(sheet.get("fsdp"))
    unsaid = (
        ""
        if workers > 1
        else "; how many processes stands in no key: give --devices.processes N, which a step then has N times the rows of"
    )
    if sheet.given("deepspeed"):
        _read_zero(sheet, unsaid)
    elif fsdp:
        sheet.became("fsdp", "devices.kind", "fsdp", unsaid.removeprefix("; "))
    elif workers > 1:
        sheet.put("train", "devices.kind", "ddp", f"ray_num_workers: {workers}")
    sheet.verdict(
        "fsdp",
        "default" if not fsdp else "no effect",
        "deepspeed says it" if fsdp else "what LLaMA-Factory takes without it",
    )
    if workers > 1:
        sheet.became("ray_num_workers", "devices.processes", workers)


def _read_zero(sheet: Sheet, unsaid: str) -> None:
    stage, offload, found = _stage_of(sheet)
    if stage is None:
        do = "Write devices: {kind: zero, stage: ...} behind, or start where the file can be found"
        sheet.unsupported("deepspeed", f"{sheet.get('deepspeed')} is not found", do)
        return
    origin = f"deepspeed: {sheet.get('deepspeed') if isinstance(sheet.get('deepspeed'), str) else '...'}"
    for name, value in (("kind", "zero"), ("stage", stage), ("offload", offload)):
        if value is not None:
            sheet.put("train", f"devices.{name}", value, origin)
    sheet.verdict(
        "deepspeed",
        "became",
        f"devices: zero, stage {stage}{f', offload {offload}' if offload else ''}, {found}{unsaid}",
    )


def _stage_of(sheet: Sheet) -> tuple[int | None, str | None, str]:
    """(stage, what is offloaded, how that is known) of the DeepSpeed config that a file names or holds."""
    typed: Any = sheet.get("deepspeed")
    path = next(
        (p for p in (Path(str(typed)), sheet.folder / str(typed)) if not isinstance(typed, dict) and p.is_file()), None
    )
    if path is None and not isinstance(typed, dict):
        usual = USUAL.search(str(typed))
        stage = int(usual[1]) if usual else None
        moved = ("all" if stage == 3 else "optimizer") if usual and usual[2] else None
        return stage, moved, "by the name of the file, which is not there"
    zero = (typed if isinstance(typed, dict) else read_object(path or Path())).get("zero_optimization") or {}
    devices = {part: (zero.get(f"offload_{part}") or {}).get("device", "none") for part in ("optimizer", "param")}
    for part, device in devices.items():
        if device not in {"none", "cpu"}:
            sheet.unsupported("deepspeed", f"offload_{part} to {device}: only CPU memory is offloaded to", "Take cpu")
    moved = "all" if devices["param"] == "cpu" else "optimizer" if devices["optimizer"] == "cpu" else None
    return int(zero.get("stage", 0)), moved, "as the file says"
