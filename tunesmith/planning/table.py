"""A memory plan as lines for a person: one part a line with its bar. Knows no console."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.core.artifacts import MemoryPlan

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "reward", "overhead")
"""The reward part only where there is one."""
WIDTH = 30


def plan_lines(plan: MemoryPlan) -> list[str]:
    """The parts with bars, the total, whether it fits, and the advice where it does not."""
    share = plan.trainable_parameters / plan.parameters
    lines = [
        f"plan      {plan.model}, {plan.method}, {plan.precision}"
        f"{', activation checkpointing' if plan.checkpointing else ''}: "
        f"{plan.trainable_parameters:,} of {plan.parameters:,} parameters trained ({share:.2%})"
    ]
    sizes = {part: getattr(plan, f"{part}_bytes") for part in PARTS}
    shown = {part: size for part, size in sizes.items() if size or part != "reward"}
    lines += [f"  {part:<12}{gib(size):>10}  {_bar(size, max(shown.values()))}" for part, size in shown.items()]
    if plan.overlap_bytes:
        lines.append(f"  {'not at once':<12}{'-' + gib(plan.overlap_bytes):>10}")
    verdict = "fits" if plan.fits else "does NOT fit"
    lines.append(
        f"  {'at the peak':<12}{gib(plan.total_bytes):>10}  {verdict} {gib(plan.available_bytes)} on {plan.device}"
    )
    if plan.seconds_per_epoch is not None:
        lines.append(f"  {'one epoch':<12}{duration(plan.seconds_per_epoch):>10}  measured on a few batches")
        assert plan.seconds_per_further_epoch is not None
        if plan.seconds_per_further_epoch < plan.seconds_per_epoch:
            lines.append(
                f"  {'each further':<12}{duration(plan.seconds_per_further_epoch):>10}  reads what frozen layers made"
            )
    if not plan.fits:
        lines.append(f"  {'advice':<12}{plan.advice or 'nothing small makes it fit'}")
    return lines


def compare_lines(plans: Sequence[MemoryPlan]) -> list[str]:
    """Several plans side by side, one a line."""
    widest = max(plan.total_bytes for plan in plans)
    lines = []
    for plan in plans:
        name = f"{plan.method} {plan.precision}{' checkpointing' if plan.checkpointing else ''}"
        fits = "fits" if plan.fits else "does not fit"
        lines.append(f"  {name:<24}{gib(plan.total_bytes):>10}  {_bar(plan.total_bytes, widest):<{WIDTH}}  {fits}")
    return lines


def gib(size_bytes: float) -> str:
    """`1.25 GiB`; below 0.01 GiB in MiB."""
    return f"{size_bytes / 2**30:.2f} GiB" if size_bytes >= 2**30 / 100 else f"{size_bytes / 2**20:.2f} MiB"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `5 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _bar(size: int, largest: int) -> str:
    filled = round(WIDTH * size / max(largest, 1))
    return "█" * filled or "▏"
