"""Trackers: the numbers of events.jsonl handed on to other libraries while they are made. The events stay the truth.

Nothing leaves the machine unless the environment says so in the library's own words (WANDB_MODE, WANDB_API_KEY,
SWANLAB_MODE, SWANLAB_API_KEY, MLFLOW_TRACKING_URI); without them everything lies in the run folder.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TextIO

from tunesmith.core import files
from tunesmith.core.errors import MissingExtra

if TYPE_CHECKING:
    from tunesmith.core.config import Config
    from tunesmith.core.run import Run

TrackerName = Literal["tensorboard", "wandb", "swanlab", "trackio", "mlflow"]
NEEDS = {
    "tensorboard": ("tensorboard",), "wandb": ("wandb",), "swanlab": ("swanlab",), "trackio": ("trackio",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}  # fmt: skip
PROJECT = "tunesmith"
IDS, SAID = "track.json", "track.log"
"""In the run folder: the names under which trackers know the run, and what their libraries say on screen."""


@dataclass(frozen=True, slots=True)
class Tracker:
    """One library at work."""

    log: Callable[[int, dict[str, float]], None]
    """(step, numbers by name)"""
    close: Callable[[bool], None]
    """Whether the run came to its end."""


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Raise MissingExtra for the first library that is not installed."""
    for name in names:
        missing = [module for module in NEEDS[name] if importlib.util.find_spec(module) is None]
        if missing:
            extra = "trackio" if name == "trackio" else "track"
            raise MissingExtra("track", f"{name} needs {missing[0]}", do=f"pip install 'tunesmith[{extra}]'")


@contextlib.contextmanager
def tracked(run: Run, config: Config, names: Sequence[TrackerName]) -> Iterator[None]:
    """While it lasts, steps and evaluations of the run go to the trackers too; a resumed run goes on in the same ones."""
    if not names:
        yield
        return
    path = run.folder / IDS
    known = files.read_json(path) if path.is_file() else {}
    ids = {name: known.get(name) or uuid.uuid4().hex[:12] for name in names}
    with (run.folder / SAID).open("a", encoding="utf-8") as said:
        trackers: list[Tracker] = []
        with _aside(said):
            trackers.extend(START[name](run, config, ids) for name in names)
        files.write_json(path, {**known, **ids})
        run.listeners.append(lambda event: _hand_on(event, trackers))
        went_well = False
        try:
            yield
            went_well = True
        finally:
            run.listeners.pop()
            with _aside(said):
                for tracker in trackers:
                    tracker.close(went_well)


@contextlib.contextmanager
def _aside(said: TextIO) -> Iterator[None]:
    """Greetings and farewells of libraries go to a file: --json and --quiet mean what they say."""
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield


def _hand_on(event: dict[str, Any], trackers: Sequence[Tracker]) -> None:
    if event["event"] not in {"step", "evaluation"}:
        return
    numbers = {
        name: float(value)
        for name, value in event.items()
        if name not in {"time", "step", "event"} and type(value) in {int, float} and math.isfinite(value)
    }
    for tracker in trackers:
        tracker.log(event["step"], numbers)


def _tensorboard(run: Run, _config: Config, _ids: dict[str, str]) -> Tracker:
    from torch.utils.tensorboard import SummaryWriter

    folder, writers = run.folder / "tensorboard", []

    def log(step: int, numbers: dict[str, float]) -> None:
        if not writers:  # what a killed run wrote from here on is void
            first = step if "loss" in numbers else step + 1
            writers.append(SummaryWriter(str(folder), purge_step=first if folder.is_dir() else None))
        for name, value in numbers.items():
            writers[0].add_scalar(name, value, step)

    def close(_: bool) -> None:
        for writer in writers:
            writer.close()

    return Tracker(log, close)


def _wandb(run: Run, config: Config, ids: dict[str, str]) -> Tracker:
    asked = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    if asked != "online":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb  # pyright: ignore[reportMissingImports] - extra track

    quiet = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
    started = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT), name=run.folder.name, id=ids["wandb"], resume="allow",
        dir=str(run.folder), mode=asked, config=config.model_dump(mode="json"), settings=quiet,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    return Tracker(
        lambda step, numbers: started.log(numbers, step=step), lambda ended: started.finish(exit_code=int(not ended))
    )


def _swanlab(run: Run, config: Config, ids: dict[str, str]) -> Tracker:
    import swanlab  # pyright: ignore[reportMissingImports] - extra track

    asked = os.environ.get("SWANLAB_MODE") or ("online" if os.environ.get("SWANLAB_API_KEY") else "offline")
    folder = run.folder / "swanlab"
    folder.mkdir(exist_ok=True)
    started = swanlab.init(
        project=os.environ.get("SWANLAB_PROJECT", PROJECT), name=run.folder.name, id=ids["swanlab"], resume="allow",
        log_dir=str(folder), mode=asked, config=config.model_dump(mode="json"),  # pyright: ignore[reportArgumentType]
        settings=swanlab.Settings(terminal={"proxy_type": "none"}, interactive=False),  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    return Tracker(
        lambda step, numbers: started.log(numbers, step=step),
        lambda ended: started.finish(state="success" if ended else "aborted"),
    )


def _trackio(run: Run, config: Config, ids: dict[str, str]) -> Tracker:
    os.environ.setdefault("TRACKIO_DIR", str(run.folder / "trackio"))  # read when it is imported
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    trackio = importlib.import_module("trackio")
    trackio.init(
        project=PROJECT, name=f"{run.folder.name}-{ids['trackio']}", resume="allow", embed=False,
        config=config.model_dump(mode="json"), auto_log_cpu=False, auto_log_gpu=False,
    )  # fmt: skip
    return Tracker(lambda step, numbers: trackio.log(numbers, step=step), lambda _: trackio.finish())


def _mlflow(run: Run, config: Config, ids: dict[str, str]) -> Tracker:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports] - extra track
    from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports] - extra track

    (run.folder / "mlflow").mkdir(exist_ok=True)
    here = f"sqlite:///{(run.folder / 'mlflow' / 'mlflow.db').resolve()}"
    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", here))
    key = f"tags.tunesmith = '{ids['mlflow']}'"
    project = client.get_experiment_by_name(PROJECT)
    experiment = project.experiment_id if project else client.create_experiment(PROJECT)
    found = client.search_runs([experiment], key)
    made = (
        found[0]
        if found
        else client.create_run(experiment, tags={"tunesmith": ids["mlflow"]}, run_name=run.folder.name)
    )
    known = made.info.run_id
    if found:
        client.update_run(known, status="RUNNING")
    else:
        params = [Param(name, str(value)[:6000]) for name, value in config.model_dump(mode="json").items()]
        client.log_batch(known, params=params)

    def log(step: int, numbers: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        client.log_batch(known, metrics=[Metric(name, value, now, step) for name, value in numbers.items()])

    return Tracker(log, lambda ended: client.set_terminated(known, "FINISHED" if ended else "KILLED"))


START: dict[str, Callable[[Run, Config, dict[str, str]], Tracker]] = {
    "tensorboard": _tensorboard, "wandb": _wandb, "swanlab": _swanlab, "trackio": _trackio, "mlflow": _mlflow,
}  # fmt: skip
