"""The loss curve of a run, drawn from its events."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunesmith.core.run import Run


def draw_losses(run: Run) -> list[str]:
    """Write loss.png and loss.svg into the run folder: training loss, its mean, held-out loss. Returns the names."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    events = list(run.events())
    steps = {event["step"]: event["loss"] for event in events if event["event"] == "step" and event["loss"] is not None}
    held = {event["step"]: event["held_out_loss"] for event in events if "held_out_loss" in event}
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(list(steps), list(steps.values()), color="#9db4d0", linewidth=1, label="training loss, each step")
    axes.plot(list(steps), _smooth(list(steps.values())), color="#1f5fa8", linewidth=2, label="training loss, smoothed")
    if held:
        axes.plot(list(held), list(held.values()), "o-", color="#c8541b", linewidth=2, label="held-out loss")
    axes.set(xlabel="optimizer step", ylabel="loss (nats per trained token)", title=run.folder.name)
    axes.grid(alpha=0.3)
    axes.legend()
    names = ["loss.png", "loss.svg"]
    for name in names:
        figure.savefig(run.folder / name, dpi=120)
    plt.close(figure)
    return names


def _smooth(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential mean, corrected for its start (as in Adam)."""
    smooth, mean = [], 0.0
    for number, value in enumerate(values, 1):
        mean = weight * mean + (1 - weight) * value
        smooth.append(mean / (1 - weight**number))
    return smooth
