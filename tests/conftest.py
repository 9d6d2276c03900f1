"""Small real objects for all tests: a byte tokenizer with a chat template, a two-layer model; no network."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from tiny import byte_tokenizer, write_tiny_model

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "llamafactory"
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def pytest_configure(config: pytest.Config) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background without it


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the loopback interface may be reached."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in LOOPBACK:
            raise AssertionError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _own_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Answers of base models, prepared rows and first numbers are kept for the length of one test."""
    monkeypatch.setattr("tunesmith.core.kept.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("tunesmith.evaluation.kept.cache_folder", lambda: tmp_path / "cache")


@pytest.fixture(scope="module")
def one_thread():
    """Torch with one thread: two workers with two each would wait for one another."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer():
    """The byte tokenizer with a ChatML template."""
    return byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a two-layer model."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short alpaca rows."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    colours = ["red", "blue", "green", "grey", "black"]
    rows = [
        {"instruction": f"What colour has lamp {n}?", "input": "", "output": f"Lamp {n} is {colours[n % 5]}."}
        for n in range(40)
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def shared_data() -> Path:
    """The real data sets beside the checkout; skipped where they are missing."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data/llamafactory is not here")
    return SHARED


@pytest.fixture
def two_gpus(tmp_path, monkeypatch):
    """What the driver's tool says on a machine with two GPUs."""
    tool = tmp_path / "tools" / "nvidia-smi"
    tool.parent.mkdir()
    first, second = "First GPU, 24000, 20000, 9.0", "Second GPU, 16000, 15000, 7.5"
    tool.write_text(
        f'#!/bin/sh\ncase "$1" in\n--id=0) echo {first};;\n--id=1) echo {second};;\n--id=*) exit 6;;\n'
        f"*) echo {first}; echo {second};;\nesac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
