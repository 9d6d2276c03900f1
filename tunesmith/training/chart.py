"""The curves of a run, drawn from its events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from tunesmith.core.run import Run
    from tunesmith.training.record import Finding, Record

UNITS = {
    "learning_rate": "learning rate", "gradient_norm": "gradient norm", "tokens_per_second": "tokens / s",
    "memory_bytes": "memory, GiB",
}  # fmt: skip
"""What every step has, in words; any further number of a step (reward, accuracy, margin, KL) gets a panel under its name."""
NO_CURVE = {"time", "event", "step", "loss", "count", "labels", "tokens", "best", "held_out_loss"}
COLUMNS = 4
RATES, DEPTHS = "rates.svg", "depths.svg"


def draw_losses(run: Run) -> list[str]:
    """Write loss.png and loss.svg into the run folder: losses, and small panels of all else. Returns the names."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    events = list(run.events())
    steps = {event["step"]: event for event in events if event["event"] == "step"}
    held = {event["step"]: event for event in events if event["event"] == "evaluation"}
    panels = _panels(steps, held)
    below = -(-len(panels) // COLUMNS)
    figure = plt.figure(figsize=(10, 4.5 + 1.9 * below), layout="constrained")
    grid = figure.add_gridspec(1 + below, COLUMNS, height_ratios=[4.5, *[1.9] * below])
    _draw_losses(figure.add_subplot(grid[0, :]), steps, held, run.folder.name)
    for number, (name, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[1 + number // COLUMNS, number % COLUMNS])
        for label, color, curve in curves:
            axes.plot(*_values(curve, name), color=color, linewidth=1, label=label)
        axes.set_title(UNITS.get(name, name.replace("_", " ")), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if len(curves) > 1:
            axes.legend(fontsize=7)
    names = ["loss.png", "loss.svg"]
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, and not for each file again
    for name in names:
        figure.savefig(run.folder / name, dpi=120)
    plt.close(figure)
    return names


def _panels(steps: dict[int, Any], held: dict[int, Any]) -> dict[str, list[tuple[str, str, dict[int, float]]]]:
    """name -> curves (label, colour, step -> value); held-out numbers stand beside the training ones of that name."""
    found: dict[str, list[tuple[str, str, dict[int, float]]]] = {}
    for label, color, events in (("training", "#1f5fa8", steps), ("held-out", "#c8541b", held)):
        names = dict.fromkeys(name for event in events.values() for name in event if name not in NO_CURVE)
        for name in names:
            curve = {step: event[name] for step, event in events.items() if isinstance(event.get(name), int | float)}
            if curve:
                found.setdefault(name.removeprefix("held_out_"), []).append((label, color, curve))
    return found


def _values(curve: dict[int, float], name: str) -> tuple[list[int], list[float]]:
    scale = 2**30 if name == "memory_bytes" else 1
    return list(curve), [value / scale for value in curve.values()]


def _draw_losses(axes: Any, steps: dict[int, Any], held: dict[int, Any], title: str) -> None:
    losses = {step: event["loss"] for step, event in steps.items() if event["loss"] is not None}
    axes.plot(list(losses), list(losses.values()), color="#9db4d0", linewidth=1, label="training loss, each step")
    smooth = _smooth(list(losses.values()))
    axes.plot(list(losses), smooth, color="#1f5fa8", linewidth=2, label="training loss, smoothed")
    judged = {step: event["held_out_loss"] for step, event in held.items() if event.get("held_out_loss") is not None}
    if judged:
        axes.plot(list(judged), list(judged.values()), "o-", color="#c8541b", linewidth=2, label="held-out loss")
    axes.set(xlabel="optimizer step", ylabel="loss", title=title)
    axes.grid(alpha=0.3)
    axes.legend()


def draw_findings(record: Record, findings: Sequence[Finding], target: Path, title: str) -> None:
    """Draw losses, gradient norms and updates of a run, with a line where each finding began, into `target`."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (losses, sizes) = plt.subplots(
        2, 1, figsize=(9, 7), layout="constrained", sharex=True, height_ratios=(3, 2)
    )
    _lines(losses, record.steps, "loss", color="#9db4d0", linewidth=1, label="training loss, each step")
    for points, colour, label in (
        (record.trained, "#1f5fa8", "loss on the same training rows"),
        (record.held_out, "#c8541b", "held-out loss"),
    ):
        if points:
            losses.plot(*zip(*points, strict=True), "o-", color=colour, linewidth=2, markersize=4, label=label)
    _lines(sizes, record.steps, "gradient_norm", color="#4b8b3b", label="gradient norm")
    _lines(sizes, record.steps, "update", color="#8a4fa3", label="update / weights")
    for place, finding in enumerate(findings):
        for axes in (losses, sizes):
            axes.axvline(finding.step, color="#b3261e", linestyle="--", linewidth=1.2)
        losses.text(
            finding.step, 0.97 - 0.06 * (place % 8), f" {finding.name}", color="#b3261e", va="top",
            transform=losses.get_xaxis_transform(),
        )  # fmt: skip
    losses.set(ylabel="loss (nats)", title=f"{title}: {', '.join(f.name for f in findings) or 'nothing found'}")
    sizes.set(xlabel="optimizer step", yscale="log")
    for axes in (losses, sizes):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(loc="upper right", fontsize="small")
    figure.savefig(target, dpi=120)
    plt.close(figure)


def charts_of_trials(run: Run) -> list[str]:
    """The charts of what was tried before the first step, by name."""
    return [name for name in (DEPTHS, RATES) if (run.folder / name).is_file()]


def draw_rates(found: dict[str, Any], target: Path) -> None:
    """Draw the `rates` event of a run: learning rate against the loss after a trial, what was chosen, what diverged."""
    tried = {trial["learning_rate"]: trial["loss"] for trial in found["rates"]}
    known = {rate: loss for rate, loss in tried.items() if loss is not None}
    with _small(target) as axes:
        axes.plot(list(known), list(known.values()), "o-", color="#1f5fa8", label=f"after {found['steps']} steps")
        axes.axhline(found["base_loss"], color="#777777", linestyle="--", linewidth=1, label="untrained")
        diverged = [rate for rate, loss in tried.items() if loss is None]
        if diverged:
            top = max([found["base_loss"], *known.values()])
            axes.plot(diverged, [top] * len(diverged), "x", color="#b3261e", label="diverged")
        if found["chosen"] is not None:
            axes.axvline(found["chosen"], color="#c8541b", linewidth=1.5, label=f"chosen: {found['chosen']:g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel=f"loss on {_scored(found)}")


def draw_depths(found: dict[str, Any], target: Path) -> None:
    """Draw the `depths` event of a run: seconds of the whole run against the loss after a trial, a point for every depth."""
    known = [one for one in found["depths"] if one["loss"] is not None]
    with _small(target) as axes:
        axes.plot(
            [one["run_seconds"] for one in known],
            [one["loss"] for one in known],
            "o-",
            color="#1f5fa8",
            label=f"after {found['steps']} steps",
        )
        for one in known:
            name = (
                f"{one['layers']} of {found['layers']} layers{', chosen' if one['layers'] == found['chosen'] else ''}"
            )
            place = (one["run_seconds"], one["loss"])
            axes.annotate(name, place, textcoords="offset points", xytext=(0, 8), ha="center", fontsize="small")
        axes.axhline(found["base_loss"], color="#777777", linestyle="--", linewidth=1, label="untrained")
        axes.margins(x=0.2)
        axes.set(xlabel="seconds of the whole run, as its trial took them", ylabel=f"loss on {_scored(found)}")


def _scored(found: dict[str, Any]) -> str:
    return f"{found['scored']} {'held-out rows' if found['held_out'] else 'training rows that no trial trains on'}"


@contextmanager
def _small(target: Path) -> Iterator[Any]:
    """Axes of a chart of its own, which is written afterwards."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    yield axes
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(target, dpi=120)
    plt.close(figure)


def _lines(axes: Any, steps: Sequence[dict[str, Any]], name: str, **style: Any) -> None:
    """A number of the steps; zeros and what is no number are gaps."""
    values = [step.get(name) or float("nan") for step in steps]
    if any(value == value for value in values):  # noqa: PLR0124 - nan is not equal to itself
        axes.plot([step["step"] for step in steps], values, **style)


def _smooth(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential mean, corrected for its start (as in Adam)."""
    smooth, mean = [], 0.0
    for number, value in enumerate(values, 1):
        mean = weight * mean + (1 - weight) * value
        smooth.append(mean / (1 - weight**number))
    return smooth
