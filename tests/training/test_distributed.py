"""Two processes on CPU: every kind of devices has the loss series of one process, and reads what the others wrote."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith import verbs
from tunesmith.core.config import load
from tunesmith.core.errors import DiseaseFound, Paused, ServiceError

TOGETHER = Path(__file__).with_name("together.py")
KINDS = {
    "ddp": {"kind": "ddp"},
    "zero 0": {"kind": "zero", "stage": 0},
    "zero 1": {"kind": "zero", "stage": 1},
    "zero 2": {"kind": "zero", "stage": 2},
    "zero 2 + offload": {"kind": "zero", "stage": 2, "offload": "optimizer"},
    "zero 3": {"kind": "zero", "stage": 3},
    "zero 3 + offload": {"kind": "zero", "stage": 3, "offload": "all"},
    "fsdp": {"kind": "fsdp"},
}
HELD = {
    "ddp": ["DistributedDataParallel", "AdamW"],
    "zero 0": ["DeepSpeedEngine", "AdamW"],
    "zero 1": ["DeepSpeedEngine", "DeepSpeedZeroOptimizer"],
    "zero 2": ["DeepSpeedEngine", "DeepSpeedZeroOptimizer"],
    "zero 2 + offload": ["DeepSpeedEngine", "DeepSpeedZeroOptimizer"],
    "zero 3": ["DeepSpeedEngine", "DeepSpeedZeroOptimizer_Stage3"],
    "zero 3 + offload": ["DeepSpeedEngine", "DeepSpeedZeroOptimizer_Stage3"],
}
METHODS = {"lora": {"kind": "lora", "plus_ratio": 4}, "full": {"kind": "full"}}
BASE = {"precision": "fp32", "optimizer": {"learning_rate": 0.01, "epochs": 2}, "save": {"every_steps": 3, "keep": 9}}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def prepare(folder: Path, document: dict) -> Path:
    """Run the train verb; a run for many processes is prepared and not started."""
    verbs.perform("train", load(verbs.config_class("train"), document), folder, quiet=True)
    return folder


def many(folder: Path, document: dict, devices: dict) -> Path:
    """A run of two processes that waits to be started, as it does for several hosts."""
    return prepare(folder, {**document, "devices": {**devices, "processes": 2, "hosts": ["127.0.0.1"]}})


def start(folders: list[Path]) -> None:
    """Run them all in one pair of processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(port), str(TOGETHER)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, *map(str, folders)],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def losses(folder: Path) -> list[float]:
    """Training losses by step, then held-out losses."""
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    steps = {event["step"]: event["loss"] for event in events if event["event"] == "step"}
    return [*steps.values(), *(event["held_out_loss"] for event in events if event["event"] == "evaluation")]


def again(folder: Path, step: int, *words: str) -> None:
    """Go on after the checkpoint of a step, as if what came later had not been."""
    for path in (folder / "checkpoints").iterdir():
        if int(path.name[-6:]) > step:
            shutil.rmtree(path)
    events = folder / "events.jsonl"
    kept = [line for line in events.read_text(encoding="utf-8").splitlines() if json.loads(line).get("step", 0) <= step]
    events.write_text("\n".join(kept) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "tunesmith", "train", str(folder), "--resume", "--quiet", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module", params=METHODS)
def runs(request, tmp_path_factory, tiny_model, rows_file):
    """(the run of one process, kind -> its run) of a method, all with steps of 12 rows."""
    folder = tmp_path_factory.mktemp("runs")
    document = {
        **BASE,
        "model": str(tiny_model),
        "dataset": {"path": [str(rows_file)]},
        "method": METHODS[request.param],
    }
    one = prepare(folder / "one", {**document, "batch": {"rows": 3, "accumulate": 4}})
    document["batch"] = {"rows": 3, "accumulate": 2}
    found = {kind: many(folder / kind.replace(" ", ""), document, devices) for kind, devices in KINDS.items()}
    start(list(found.values()))
    return one, found


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_series_is_that_of_one_process(runs, kind):
    one, found = runs
    assert losses(found[kind]) == pytest.approx(losses(one), abs=1e-4)
    assert len(losses(one)) == 6 + 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_asked_holds_the_model(runs, kind):
    held = json.loads((runs[1][kind] / "held.json").read_text(encoding="utf-8"))
    if kind == "fsdp":
        assert held["by"][0].startswith("FSDP")
    else:
        assert held["by"] == HELD[kind]
    pieces = 2 if kind == "fsdp" else 1
    assert held["here"] == (
        0 if kind.startswith("zero 3") else held["of"] / pieces
    )  # stage 3 keeps its piece elsewhere
    assert held["offload"] == {"zero 2 + offload": [True, False], "zero 3 + offload": [True, True]}.get(
        kind, [False] * 2
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zero 2", "zero 3", "fsdp"])
def test_a_checkpoint_of_many_processes_resumes_in_one(runs, kind, tmp_path):
    one, found = runs
    folder = shutil.copytree(found[kind], tmp_path / "run")
    again(folder, 3, "--devices.kind", "one", "--batch.accumulate", "4")
    assert losses(folder) == pytest.approx(losses(one), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "zero 1", "zero 3", "fsdp"])
def test_a_checkpoint_of_one_process_resumes_in_many(runs, kind, tmp_path):
    one, _ = runs
    folder = shutil.copytree(one, tmp_path / "run")
    words = [word for name, value in KINDS[kind].items() for word in (f"--devices.{name}", str(value))]
    again(folder, 3, "--devices.processes", "2", *words, "--batch.accumulate", "2")
    assert losses(folder) == pytest.approx(losses(one), abs=1e-4)


@pytest.mark.slow
def test_every_process_has_its_own_dropout_and_gets_it_back(tmp_path, tiny_model, rows_file):
    document = {
        **BASE,
        "model": str(tiny_model),
        "dataset": {"path": [str(rows_file)]},
        "batch": {"rows": 3, "accumulate": 2},
    }
    dropped = {**document, "method": {"kind": "lora", "dropout": 0.3}, "devices": {"kind": "ddp", "processes": 2}}
    whole = prepare(tmp_path / "whole", dropped)
    states = [path.read_bytes() for path in sorted((whole / "checkpoints").glob("*3/state/random*.safetensors"))]
    assert len(set(states)) == 2
    before = losses(whole)
    again(whole, 3)
    assert losses(whole) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "kinds"), [("dpo", ("ddp", "zero 3", "fsdp")), ("reward", ("ddp",)), ("kto", ("ddp",))]
)
def test_other_objectives_train_in_many_processes(tmp_path, tiny_model, rows_file, objective, kinds):
    rows = [json.loads(line) for line in rows_file.read_text(encoding="utf-8").splitlines()]
    pairs = [{"prompt": row["instruction"], "chosen": row["output"], "rejected": "No."} for row in rows]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    document = {**BASE, "model": str(tiny_model), "dataset": {"path": [str(path)]}, "objective": {"kind": objective}}
    if objective == "kto":
        told = [
            {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
            for pair in pairs for side in ("chosen", "rejected")
        ]  # fmt: skip
        path.write_text("\n".join(map(json.dumps, told)), encoding="utf-8")
    one = prepare(tmp_path / "one", {**document, "batch": {"rows": 3, "accumulate": 4}})
    document["batch"] = {"rows": 3, "accumulate": 2}
    found = [many(tmp_path / kind[:4], document, KINDS[kind]) for kind in kinds]
    start(found)
    for folder in found:
        assert losses(folder) == pytest.approx(losses(one), abs=1e-4)


class Door:
    """`tunesmith train` with two processes that would go on for long, and what becomes of it."""

    def __init__(self, folder: Path, model: Path, rows: Path) -> None:
        words = ["train", str(rows), "--model", str(model), "--precision", "fp32", "--batch.rows", "4", "--quiet"]
        words += ["--optimizer.steps", "100000", "--save.every_steps", "100000", "--evaluation.every_steps", "100000"]
        words += ["--devices.kind", "ddp", "--devices.processes", "2", "--out", str(folder)]
        self.folder, pipe = folder, subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tunesmith", *words], stdout=pipe, stderr=pipe, text=True, env=ENVIRONMENT
        )
        while self.process.poll() is None and self.steps() < 3:
            pass

    def steps(self) -> int:
        """Steps that are done."""
        path = self.folder / "events.jsonl"
        return path.read_text(encoding="utf-8").count('"event": "step"') if path.is_file() else 0

    def worker(self, rank: int) -> int:
        """The process id of a rank."""
        import psutil

        found = psutil.Process(self.process.pid).children(recursive=True)
        return next(one.pid for one in found if one.environ().get("RANK") == str(rank))

    def end(self) -> tuple[int, str]:
        """(exit code, standard error), once all of it has ended."""
        said = self.process.communicate(timeout=120)[1]
        return self.process.returncode, said


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_run_in_one_line(tmp_path, tiny_model, rows_file, rank):
    door = Door(tmp_path / "run", tiny_model, rows_file)
    workers = [door.worker(number) for number in (0, 1)]
    os.kill(workers[rank], signal.SIGKILL)
    code, said = door.end()
    assert code == ServiceError.exit_code
    assert said == f"train: process {rank} of 2 ended by SIGKILL. See {door.folder / 'processes' / 'log.txt'}.\n"
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow
def test_every_process_ends_with_the_words_of_the_finding(tmp_path, tiny_model, rows_file):
    """Whichever process is the first to go, the line says what was found."""
    devices = {"kind": "ddp", "processes": 2}
    document = {**BASE, "model": str(tiny_model), "dataset": {"path": [str(rows_file)]}, "devices": devices}
    document |= {"optimizer": {"epochs": 60}, "diagnosis": {"on_disease": "stop", "samples": 0, "general": 0}}
    with pytest.raises(DiseaseFound, match="too_few_rows since step 0"):
        prepare(tmp_path / "run", document)
    said = [json.loads(path.read_text())["line"] for path in (tmp_path / "run" / "processes").glob("error-*.json")]
    assert said
    assert all("too_few_rows since step 0" in line for line in said)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_door_saves_and_pauses(tmp_path, tiny_model, rows_file, number):
    door = Door(tmp_path / "run", tiny_model, rows_file)
    door.process.send_signal(number)
    code, said = door.end()
    assert code == Paused.exit_code
    assert said.startswith(f"train: stopped by {number.name} after step ")
    assert said.count("\n") == 1
    assert len(list((door.folder / "checkpoints").iterdir())) == 1
