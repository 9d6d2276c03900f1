"""What the machine says of itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tunesmith.core import hardware


def test_what_was_freed_before_does_not_count_for_the_new_peak():
    pieces = [bytearray(100_000) for _ in range(4000)]
    last = pieces[::200]  # small holes stay between what lives
    held = hardware.peak_memory_bytes()
    del pieces
    hardware.reset_peak_memory()
    assert hardware.peak_memory_bytes() < held - 300_000_000
    assert len(last) == 20


def test_a_torch_for_cuda_is_known_by_its_files():
    import torch

    assert hardware.probe().cuda_build == (torch.version.cuda is not None)


@pytest.mark.parametrize(
    ("visible", "name", "bf16"),
    [(None, "First GPU", True), ("0,1", "First GPU", True), ("1", "Second GPU", False), ("1,0", "Second GPU", False)],
)
def test_the_gpu_is_the_first_that_torch_may_see(two_gpus, monkeypatch, visible, name, bf16):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = hardware.probe()
    assert (found.gpu_name, found.native_bf16, found.device) == (name, bf16, "cuda")
    assert found.training_bytes == (20000 if name == "First GPU" else 15000) << 20


@pytest.mark.parametrize("hidden", ["", " ", "-1"])
def test_hidden_gpus_are_none(two_gpus, monkeypatch, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    found = hardware.probe()
    assert (found.gpu_name, found.device, found.training_bytes) == ("", "cpu", found.available_bytes)


MANY_SHAPES = """
from tunesmith.core import hardware
hardware.set_environment()
import torch

def multiply(rows):
    torch.ones(rows, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)

multiply(8)
held = hardware.memory_bytes()
for rows in range(16, 616):
    multiply(rows)
hardware.give_back_memory()
print((hardware.memory_bytes() - held) >> 20)
"""


def _grown(**wishes: str) -> int:
    """MiB that a fresh process holds more after products of 600 shapes."""
    ours = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"}
    rest = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [sys.executable, "-c", MANY_SHAPES], env=rest | wishes, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(
    not hardware.probe().native_bf16, reason="the code of bf16 products is made by the shape only where they are native"
)
def test_code_of_many_shapes_does_not_stay():
    ours, theirs = _grown(), _grown(ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024", LRU_CACHE_CAPACITY="1024")
    assert ours < theirs / 3, "what the environment wishes wins, and without a wish little is kept"
