"""Many real training runs of a tiny model in forked processes, each ready at once; kills.py and faults.py use it."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")


def perform(rehearse: Callable[[int, Path], dict[str, Any]], number: int, name: str) -> None:
    """The command line `[NUMBER] [--out FILE]` of a rehearsal; what was found is printed and written, by default as results/NAME."""
    from tunesmith.core import files

    words = sys.argv[1:]
    target = Path(words[words.index("--out") + 1]) if "--out" in words else ROOT / "benchmarks" / "results" / name
    _warm_up()
    with _work_folder() as folder:
        found = rehearse(int(words[0]) if words and words[0].isdigit() else number, Path(folder))
    files.write_json(target, found)
    print(files.to_json(found))


def _warm_up() -> None:
    """Import what a run imports, so that a fork begins at once; computes nothing, so that no thread is lost by the fork."""
    import accelerate  # noqa: F401
    import matplotlib as mpl
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: F401

    import tunesmith.training.loop
    import tunesmith.verbs.train  # noqa: F401


class Rehearsal:
    """A folder with a tiny model and rows, and the command of a run that is deterministic to the bit."""

    def __init__(self, folder: Path, *wishes: str) -> None:
        from tiny import write_tiny_model

        self.folder = folder
        pid = os.fork()  # the parent stays without torch's threads
        if not pid:
            write_tiny_model(folder / "model")
            os._exit(0)
        os.waitpid(pid, 0)
        colours = ["red", "blue", "green", "grey", "black"]
        lines = [
            {"instruction": f"What colour has lamp {n}?", "output": f"Lamp {n} is {colours[n % 5]}."} for n in range(40)
        ]
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        self._words = [
            "train", str(folder / "rows.jsonl"), "--model", str(folder / "model"), "--precision", "fp32",
            "--batch.rows", "4", "--optimizer.learning-rate", "0.01", "--method.dropout", "0.1", "--quiet", *wishes,
        ]  # fmt: skip

    def words(self, run: Path) -> list[str]:
        """What a person types: the run, or --resume where it has begun."""
        if (run / "config.yaml").is_file():
            return ["train", str(run), "--resume", "--quiet"]
        return [*self._words, "--out", str(run)]

    def fork(self, run: Path, before: Callable[[], None] = lambda: None) -> int:
        """Start the run in a process of its own, after `before()` there; its standard error goes to RUN.err."""
        from tunesmith import cli

        words = self.words(run)
        pid = os.fork()
        if pid:
            return pid
        code = 99
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            with run.with_name(f"{run.name}.err").open("wb", buffering=0) as said:
                os.dup2(said.fileno(), 2)
            before()
            code = cli.main(words)
            sys.stderr.flush()
        finally:
            os._exit(code)

    def complete(self, run: Path) -> int:
        """Start or resume the run and wait. Returns its exit code (negative: killed by that signal)."""
        return os.waitstatus_to_exitcode(os.waitpid(self.fork(run), 0)[1])


def said(run: Path) -> str:
    """What the last process of the run wrote to its standard error."""
    return run.with_name(f"{run.name}.err").read_text(encoding="utf-8", errors="replace").strip()


def outcome(run: Path) -> dict[str, Any]:
    """What must be the same to the bit: all losses, the numbers of the result, the weights of the last checkpoint."""
    from tunesmith.core.files import sha256
    from tunesmith.core.run import Run
    from tunesmith.training.loop import loss_series

    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    newest = sorted(path for path in (run / "checkpoints").iterdir() if path.name[-6:].isdigit())[-1]
    return {
        "losses": {step: event["loss"] for step, event in loss_series(Run("train", run)).items()},
        "result": [result[key] for key in ("train_loss", "held_out_loss", "base_held_out_loss", "steps")],
        "weights": sha256(newest / "adapter_model.safetensors"),
    }


def _work_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for the runs that goes when the rehearsal ends; in memory where there is such a place, since what is
    killed is a process and no machine, and a disk would be waited for at every fsync."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="tunesmith-rehearsal-", dir=memory if memory.is_dir() else None)
