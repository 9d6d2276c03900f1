"""What the machine says of itself."""

from __future__ import annotations

from tunesmith.core import hardware


def test_what_was_freed_before_does_not_count_for_the_new_peak():
    pieces = [bytearray(100_000) for _ in range(4000)]
    last = pieces[::200]  # small holes stay between what lives
    held = hardware.peak_memory_bytes()
    del pieces
    hardware.reset_peak_memory()
    assert hardware.peak_memory_bytes() < held - 300_000_000
    assert len(last) == 20
