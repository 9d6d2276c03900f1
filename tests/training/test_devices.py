"""What goes with which devices, how batches are shared, which layout is taken; nothing is started here."""

from __future__ import annotations

import importlib.util
import json
import shlex
import socket
from dataclasses import replace

import pytest
import torch

from tunesmith import cli
from tunesmith.core import hardware
from tunesmith.core.errors import CapacityError, MissingExtra, ServiceError, UsageError
from tunesmith.core.hardware import Machine
from tunesmith.core.run import Run
from tunesmith.data.batch import BatchConfig
from tunesmith.models.methods import Full
from tunesmith.models.shape import read_shape
from tunesmith.planning.memory import Wish
from tunesmith.planning.zero import FASTEST_FIRST, choose_layout, lay_out
from tunesmith.training import distributed
from tunesmith.training.distributed import DevicesConfig, Team, check_device, held_bytes, peak_bytes
from tunesmith.training.launch import _ended, check_devices

ZERO = ["--devices.kind", "zero", "--devices.processes", "2"]


@pytest.fixture
def train(tmp_path, tiny_model, rows_file, monkeypatch, capsys):
    """`train(*words)` -> (exit code, what stands on standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str]:
        typed = ["train", str(rows_file), "--model", str(tiny_model), "--precision", "fp32", "--out", "run", "--quiet"]
        return cli.main([*typed, *map(str, words)]), capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--devices.processes", "2"], "devices: processes: kind one is a single process. Choose ddp, zero or fsdp"),
        (["--devices.kind", "ddp", "--devices.stage", "2"], "stage and offload go with kind zero, not with ddp"),
        (["--devices.kind", "fsdp", "--devices.offload", "all"], "stage and offload go with kind zero"),
        ([*ZERO, "--devices.offload", "optimizer"], "stage auto chooses it itself"),
        ([*ZERO, "--devices.stage", "2", "--devices.offload", "all"], "all goes with stage 3"),
        ([*ZERO, "--devices.stage", "0", "--devices.offload", "optimizer"], "stage 0 keeps everything where it is"),
        ([*ZERO, "--devices.stage", "4"], "devices.stage"),
        (["--devices.kind", "ddp", "--devices.processes", "0"], "devices.processes: must be at least 1. Got 0"),
        ([*ZERO, "--devices.stage", "0", "--optimizer.kind", "muon"], "optimizer.kind: muon goes with one process or ddp"),
        (["--devices.kind", "fsdp", "--optimizer.kind", "adafactor"], "optimizer.kind: adafactor goes with one process"),
        ([*ZERO, "--devices.stage", "3", "--method.kind", "prompt"], "method.kind: prompt asks for its virtual tokens"),
        ([*ZERO, "--devices.stage", "2", "--objective.kind", "kto"], "objective.kind: kto goes with one process or ddp"),
        (["--devices.kind", "fsdp", "--method.kind", "qlora"], "method.kind: qlora keeps its base in four bits"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_line(train, words, said):
    code, line = train(*words)
    assert code == UsageError.exit_code
    assert said in line
    assert line.count("\n") == 1


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_objectives_that_draw_answers_take_one_process(train, kind):
    objective = ["--objective.kind", kind, "--objective.reward", "x.py:score"]
    code, line = train("--devices.kind", "ddp", "--devices.processes", "2", *objective)
    assert code == UsageError.exit_code
    assert (
        line == f"objective.kind: {kind} draws answers, in one process only. Got 'devices ddp'. Choose one process.\n"
    )


def test_a_taken_port_is_one_line(train):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, line = train("--devices.kind", "ddp", "--devices.processes", "2", "--devices.port", port)
    assert code == ServiceError.exit_code
    assert (
        line
        == f"devices.port: cannot be used: Address already in use. Got {port}. Choose another, or leave it out for a free one.\n"
    )


def test_deepspeed_is_an_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtra, match=r"zero needs DeepSpeed\. DS_BUILD_OPS=0 pip install 'tunesmith\[distributed\]'"
    ):
        check_devices(DevicesConfig(kind="zero"), "cpu")


def test_several_hosts_get_a_command_each(train, tmp_path):
    code, _ = train("--devices.kind", "ddp", "--devices.hosts", "[alpha, beta]", "--devices.processes", "4")
    assert code == 0
    commands = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["commands"]
    for number, command in enumerate(commands):
        words = shlex.split(command)
        assert words[:2] == ["cd", str(tmp_path)]
        options = dict(zip(words[6:-3:2], words[7:-3:2], strict=True))
        assert options == {
            "--nnodes": "2", "--node-rank": str(number), "--nproc-per-node": "4", "--master-addr": "alpha",
            "--master-port": "29500",
        }  # fmt: skip
        assert words[-3:] == ["-m", "tunesmith.worker", str(tmp_path / "run")]
    assert len(commands) == 2


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_batches_are_shared_out_once_and_evenly(processes, count):
    shares = [list(Team(rank, processes).shares(range(count))) for rank in range(processes)]
    assert sorted(batch for share in shares for batch, counts in share if counts) == list(range(count))
    assert len({len(share) for share in shares}) == 1


def test_rows_are_those_of_each_process():
    assert Team(1, 3).batch(BatchConfig(rows=4, accumulate=2)) == BatchConfig(rows=4, accumulate=6)


def test_a_resumed_run_keeps_the_rows_of_its_steps(train, capsys):
    train("--batch.rows", 4, "--batch.accumulate", 2, "--optimizer.steps", 1)
    cli.main(["train", "run", "--resume", "--quiet", "--devices.kind", "ddp", "--devices.processes", "2"])
    said = "batch: a step of this run has 8 rows in all processes together. Got 16. --batch.accumulate 1.\n"
    assert capsys.readouterr().err == said


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU that torch cannot use")
def test_a_gpu_that_torch_cannot_use_is_said_and_not_trained_around(train, two_gpus, monkeypatch, tmp_path):
    code, line = train("--optimizer.steps", 1)
    assert code == MissingExtra.exit_code, line
    assert line.startswith("devices: this machine has a GPU, and the installed torch cannot use it. ")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert train("--optimizer.steps", 1)[0] == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU that torch cannot use")
def test_nor_is_it_planned_around(two_gpus, tmp_path, tiny_model, rows_file, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", str(tiny_model), "--dataset", str(rows_file), "--quiet"]) == MissingExtra.exit_code
    assert "the installed torch cannot use it" in capsys.readouterr().err


def test_a_gpu_that_nobody_planned_with_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "own_device", lambda: "cuda:0")
    run = Run("train", tmp_path)
    check_device("cuda", run)
    assert not list(run.events())
    check_device("cpu", run)
    assert "memory is planned and judged as if it were RAM" in next(run.events())["text"]


def test_memory_of_a_run_on_a_gpu_is_the_gpus(monkeypatch):
    said = {"memory_bytes": 1, "peak_memory_bytes": 2, "memory_reserved": 3, "max_memory_reserved": 4}
    for name, number in said.items():
        monkeypatch.setattr(torch.cuda if "reserved" in name else hardware, name, lambda number=number: number)
    assert (held_bytes(), peak_bytes()) == ((3, 4) if torch.cuda.is_available() else (1, 2))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (held_bytes(), peak_bytes()) == (3, 4)


def test_how_a_process_ended_is_read_from_what_torchrun_writes(tmp_path):
    log = tmp_path / "log.txt"
    ended = "  rank      : {0} (local_rank: {0})\n  exitcode  : {1} (pid: 7)\n"
    log.write_text(f"Failures:\n[1]:\n{ended.format(0, -15)}-----\nRoot Cause:\n[0]:\n{ended.format(1, -6)}")
    assert _ended(log, [0, 1], 2) == "1 of 2 ended by SIGABRT"
    assert _ended(log, [0], 2) == "0 of 2 ended by SIGTERM"
    log.write_text("Root Cause:\n")
    assert _ended(log, [1], 2) == "1 of 2 ended without a word"


SHAPE = read_shape({
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 16, "num_key_value_heads": 16,
})  # fmt: skip
WISH = Wish(model="m", method=Full(), precision="bf16", rows=1, tokens=64, checkpointing=False)
GPU = Machine(
    8, 64 << 30, 64 << 30, gpu_name="G", gpu_memory_bytes=64 << 30, gpu_available_bytes=64 << 30, native_bf16=True
)


def needs(machine=GPU) -> list[int]:
    return [lay_out(SHAPE, WISH, machine, (4, 4), layout).plan.total_bytes for layout in FASTEST_FIRST]


def test_every_stage_takes_less_than_the_one_before_and_so_does_offload():
    ddp, one, two, two_offload, three, three_offload = needs()
    assert ddp > one > two > three > three_offload
    assert two > two_offload


@pytest.mark.parametrize("place", range(len(FASTEST_FIRST)))
def test_the_first_layout_that_fits_is_taken(place):
    tight = replace(GPU, gpu_available_bytes=needs()[place])
    first = next(number for number, needed in enumerate(needs()) if needed <= needs()[place])
    laid, lines = choose_layout(SHAPE, WISH, tight, (4, 4), FASTEST_FIRST)
    assert laid.layout == FASTEST_FIRST[first]
    assert laid.plan.fits
    assert lines[-1].startswith(f"chosen    {laid.layout.name}: ")
    assert all(layout.name in lines[-1] for layout in FASTEST_FIRST[:first])


def test_cpu_memory_counts_too():
    """Room for stage 2 with offload on the GPU, and too little of the CPU's for the optimizers of four processes."""
    room = replace(GPU, gpu_available_bytes=needs()[3])
    fitting = lay_out(SHAPE, WISH, room, (4, 4), FASTEST_FIRST[3])
    assert fitting.plan.fits
    assert fitting.host_bytes == 4 * SHAPE.parameters  # a quarter of gradients, moments and DeepSpeed's copy
    tight = replace(room, available_bytes=4 * fitting.host_bytes - 4)
    assert not lay_out(SHAPE, WISH, tight, (4, 4), FASTEST_FIRST[3]).plan.fits


def test_where_none_fits_it_says_so():
    laid, lines = choose_layout(SHAPE, WISH, replace(GPU, gpu_available_bytes=1), (4, 4), FASTEST_FIRST)
    assert not laid.plan.fits
    assert lines[-1] == "chosen    none fits"


def test_processes_on_a_cpu_share_its_memory_and_offload_gains_nothing():
    cpu = replace(GPU, gpu_name="")
    assert lay_out(SHAPE, WISH, cpu, (4, 8), FASTEST_FIRST[0]).plan.available_bytes == (64 << 30) // 4
    totals = needs(cpu)
    assert totals[2] == totals[3]


def test_full_tuning_by_hand():
    """Stage 2 of 4: fp32 weights whole, a quarter of gradients, moments and DeepSpeed's copy, a bucket."""
    ddp, two = (lay_out(SHAPE, WISH, GPU, (4, 4), FASTEST_FIRST[place]).plan for place in (0, 2))
    trained = SHAPE.parameters
    assert (ddp.weights_bytes, ddp.gradients_bytes, ddp.optimizer_bytes) == (4 * trained, 4 * trained, 8 * trained)
    assert (two.weights_bytes, two.gradients_bytes, two.optimizer_bytes) == (4 * trained, trained, 3 * trained)
    assert two.overhead_bytes - ddp.overhead_bytes == 4 * min(trained, 50_000_000)


def test_train_refuses_what_no_layout_fits(train):
    code, line = train(*ZERO, "--memory.limit_bytes", 1000)
    assert code == CapacityError.exit_code
    assert line.startswith("memory: the run needs about")
