"""The disk fails at the n-th write, fsync or rename of a run, for every n until a run passes; then --resume must end it.

python benchmarks/faults.py [STRIDE] [--out FILE]      # default every n, else an odd stride; writes benchmarks/results/faults.json

For an odd n one operation fails, for an even n that one and all after it. A write that fails has written half.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rehearsal import Rehearsal, outcome, perform, said

WISHES = ("--optimizer.steps", "4", "--save.every-steps", "2", "--save.keep", "1", "--evaluation.every-steps", "3")
ALLOWED = {0, 5}
"""Exit codes: all went well, or CapacityError."""


class Disk:
    """In a child: counts writes, fsyncs and renames below a folder, and fails from the n-th on or only then."""

    def __init__(self, below: Path, fails_at: int, note: Path) -> None:
        self.below, self.fails_at, self.done = str(below), fails_at, 0
        self.note = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def counts(self, kind: str) -> bool:
        """Whether this operation fails."""
        self.done += 1
        fails = self.done == self.fails_at or (self.done > self.fails_at and self.fails_at % 2 == 0)
        if self.done == self.fails_at:
            os.write(self.note, kind.encode())
        return fails

    def install(self) -> None:
        """Put the wrappers in place of what Python, safetensors and we write with."""
        import safetensors.torch

        disk, real_open, write_tensors = self, io.open, safetensors.torch.serialize_file

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                if disk.counts("write"):
                    super().write(bytes(data)[: len(data) // 2])
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return super().write(data)

        def faulty_open(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
            if not set(mode) & set("wax+") or not str(file).startswith(disk.below):
                return real_open(file, mode, buffering, *rest, **named)
            raw = File(file, mode.replace("b", "").replace("t", ""))
            if buffering == 0:
                return raw
            buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffer if "b" in mode else io.TextIOWrapper(buffer, "utf-8", newline=named.get("newline"))

        def faulty_tensors(tensors: Any, path: Any, **named: Any) -> None:
            write_tensors(tensors, path, **named)
            if disk.counts("tensors"):
                os.truncate(path, Path(path).stat().st_size // 2)
                full = "Error while serializing: I/O error: No space left on device (os error 28)"
                raise safetensors.SafetensorError(full)

        io.open = builtins.open = faulty_open
        safetensors.torch.serialize_file = faulty_tensors
        os.fsync, os.rename, os.replace = (
            self._failing(real, name)
            for name, real in (("fsync", os.fsync), ("rename", os.rename), ("rename", os.replace))
        )

    def _failing(self, real: Callable[..., None], kind: str) -> Callable[..., None]:
        def call(*words: Any) -> None:
            if self.counts(kind):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(*words)

        return call


def fail_at(play: Rehearsal, run: Path, number: int) -> tuple[str, int]:
    """One run whose disk fails. Returns (what failed, or "" where the run was over before; exit code)."""
    note = run.with_name("failed-operation")
    pid = play.fork(run, lambda: Disk(run, number, note).install())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return note.read_text(encoding="utf-8"), code


def whole_checkpoints(run: Path) -> int:
    """The number of checkpoints; ends the rehearsal where one of that name is not whole."""
    from tunesmith.core.files import is_torn, verify

    found = [path for path in run.glob("checkpoints/checkpoint-*") if not is_torn(path)]
    for path in found:
        if wrong := verify(path):
            raise SystemExit(f"{path} {wrong}")
    return len(found)


def rehearse(stride: int, folder: Path) -> dict[str, Any]:
    """Let operation 1, 1 + stride, ... fail, each in a new run, and compare what `--resume` makes of it."""
    play, started = Rehearsal(folder, *WISHES), time.perf_counter()
    if play.complete(folder / "whole"):
        raise SystemExit(said(folder / "whole"))
    wanted, failed, codes, saved, number = outcome(folder / "whole"), Counter[str](), Counter[int](), 0, 1
    for_good = 0
    while True:
        run = folder / f"run-{number}"
        what, code = fail_at(play, run, number)
        lines = [line for line in said(run).splitlines() if line.strip()]
        if code not in ALLOWED or (code and len(lines) != 1):
            raise SystemExit(f"operation {number} ({what}): exit code {code}\n{said(run)}")
        saved += whole_checkpoints(run) > 0 if what else 0
        if code and play.complete(run):
            raise SystemExit(f"operation {number} ({what}): cannot be resumed\n{said(run)}")
        if outcome(run) != wanted:
            raise SystemExit(f"operation {number} ({what}): other losses")
        shutil.rmtree(run)
        if not what:
            break
        for_good += number % 2 == 0
        failed[what], codes[code], number = failed[what] + 1, codes[code] + 1, number + stride
    return {
        "stride": stride, "operations_fewer_than": number, "failed": dict(failed),
        "once": failed.total() - for_good, "for_good": for_good, "exit_codes": dict(codes), "had_a_checkpoint": saved,
        "all_bit_identical": True, "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip


if __name__ == "__main__":
    perform(rehearse, 1, "faults.json")
