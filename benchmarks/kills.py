"""`kill -9` at N random moments of real runs, a third of them inside saves; each run must end with the uninterrupted losses.

python benchmarks/kills.py [N] [--out FILE]      # default 200; writes benchmarks/results/kills.json
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rehearsal import Rehearsal, outcome, perform, said

WISHES = ("--optimizer.steps", "24", "--save.every-steps", "2", "--evaluation.every-steps", "5")
AUDITED = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}
"""File operations of Python; `os.fsync` is none of them and is counted beside them."""


def kill_at_operation(run: Path, number: int) -> Callable[[], None]:
    """What a child does to be killed at the `number`-th file operation in its run folder."""

    def install() -> None:
        done = 0

        def count() -> None:
            nonlocal done
            done += 1
            if done == number:
                os.kill(os.getpid(), signal.SIGKILL)

        def hear(event: str, facts: tuple[Any, ...]) -> None:
            if event in AUDITED and str(facts[0]).startswith(str(run)):
                count()

        real = os.fsync

        def fsync(descriptor: int) -> None:
            count()
            real(descriptor)

        os.fsync = fsync
        sys.addaudithook(hear)

    return install


def kill_once(play: Rehearsal, run: Path, choose: random.Random, seconds: float) -> str:
    """Start or resume the run and kill it. Returns how, or "" when it was faster."""
    how = choose.choice(["at a moment", "at a file operation", "in a save"])
    if how == "at a file operation":
        pid = play.fork(run, kill_at_operation(run, choose.randint(1, 500)))
    else:
        pid = play.fork(run)
        if how == "at a moment":
            time.sleep(choose.uniform(0, seconds))
        else:
            skip = choose.randint(0, 11)
            ended = _wait_for_save(run, pid, skip)
            time.sleep(0 if ended else choose.uniform(0, 0.02))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status not in {0, -signal.SIGKILL}:
        raise SystemExit(f"{run}: exit code {status}\n{said(run)}")
    return how if status else ""


def _wait_for_save(run: Path, pid: int, skip: int) -> bool:
    """Wait until the process writes a checkpoint, `skip` others before. Returns whether it ended before that."""
    seen: set[str] = set()
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        with contextlib.suppress(FileNotFoundError):
            seen |= {path.name for path in (run / "checkpoints").iterdir() if ".tmp-" in path.name}
        if len(seen) > skip:
            return False
    return True


def rehearse(count: int, folder: Path) -> dict[str, Any]:
    """Kill `count` times, chains of kills in one run among them, and compare every run that came to its end."""
    play, choose, started = Rehearsal(folder, *WISHES), random.Random(count), time.perf_counter()
    whole = folder / "whole"
    if play.complete(whole):
        raise SystemExit(said(whole))
    seconds, wanted = time.perf_counter() - started, outcome(whole)
    kills, runs, in_save, longest = Counter[str](), 0, 0, 0
    while kills.total() < count:
        run, chain = folder / f"run-{runs}", 0
        while kills.total() < count and (chain == 0 or choose.random() < 0.6):
            how = kill_once(play, run, choose, seconds)
            if not how:
                break
            kills[how], chain = kills[how] + 1, chain + 1
            in_save += any(".tmp-" in path.name for path in run.glob("checkpoints/*"))
        code = play.complete(run)
        if code or outcome(run) != wanted:
            raise SystemExit(f"after {kills.total()} kills, {run}: exit code {code}, or other losses\n{said(run)}")
        runs, longest = runs + 1, max(longest, chain)
        shutil.rmtree(run)
    return {
        "kills": kills.total(), "how": dict(kills), "left_a_half_written_checkpoint": in_save, "runs": runs,
        "most_kills_of_one_run": longest, "all_bit_identical": True, "final_train_loss": wanted["result"][0],
        "steps": wanted["result"][3], "seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip


if __name__ == "__main__":
    perform(rehearse, 200, "kills.json")
