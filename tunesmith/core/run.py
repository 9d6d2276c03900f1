"""A run folder (config, events, result, artifact) and what is said on screen meanwhile. Knows no verb."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunesmith.core import files
from tunesmith.core.config import Config, dump_yaml
from tunesmith.core.errors import CapacityError, Paused, TunesmithError, UsageError

CONFIG, EVENTS, RESULT, LOCK = "config.yaml", "events.jsonl", "result.json", "lock.json"


class Progress:
    """A bar with rate and time left on a terminal, a plain line every few seconds elsewhere."""

    def __init__(self, run: Run, label: str, total: int, unit: str) -> None:
        self._run, self._label, self._total, self._unit = run, label, total, unit
        self._done, self._started, self._said = 0, time.monotonic(), time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self._run.console.is_terminal and not self._run.quiet:
            from rich import progress as rich

            self._bar = rich.Progress(
                rich.TextColumn("{task.description}"),
                rich.BarColumn(),
                rich.MofNCompleteColumn(),
                rich.TextColumn("{task.fields[numbers]}"),
                rich.TimeRemainingColumn(),
                console=self._run.console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=self._total, numbers="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def skip(self, done: int) -> None:
        """Start at `done` (a resumed run) without counting it into the rate."""
        self._done = done
        self._show("")

    def advance(self, amount: int = 1, **numbers: Any) -> None:
        """Count `amount` more and show the numbers beside the bar."""
        self._done += amount
        self._show("  ".join(f"{name.replace('_', ' ')} {_brief(value)}" for name, value in numbers.items()))

    def _show(self, numbers: str) -> None:
        if self._bar:
            self._bar.update(self._task, completed=self._done, numbers=numbers)
            return
        now = time.monotonic()
        if now - self._said >= 10 or self._done == self._total:
            self._said = now
            left = (now - self._started) / max(self._done, 1) * (self._total - self._done)
            ending = f", {left:.0f} s left" if self._done < self._total else ""
            self._run.say(
                f"{self._label}: {self._done}/{self._total} {self._unit}{numbers and '  '}{numbers}{ending}",
                style="dim",
            )


def _brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Run:
    """One use of a verb: its folder, its events, its voice."""

    def __init__(self, verb: str, folder: Path, *, quiet: bool = False, screen_is_stderr: bool = False) -> None:
        from rich.console import Console

        self.verb, self.folder, self.quiet, self.screen_is_stderr = verb, folder, quiet, screen_is_stderr
        self.console = Console(file=sys.stderr if screen_is_stderr else sys.stdout, highlight=False, soft_wrap=True)
        self.started = time.time()
        self.replay_of: Path | None = None
        """The run folder whose run this one repeats."""
        self.unproven: TunesmithError | None = None
        """What the verb made but could not prove; raised once result.json is written."""
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        """Called with every event once it is written."""
        self._created = False

    @classmethod
    def start(
        cls,
        verb: str,
        config: Config,
        out: str | Path | None = None,
        *,
        resume: bool = False,
        replay_of: Path | None = None,
        **voice: bool,
    ) -> Run:
        """Make the run folder (default `runs/<verb>-<time>`) and write the resolved config into it.

        `voice` is how it speaks: `quiet`, `screen_is_stderr`.

        Raises UsageError when the folder holds something already and the run is not resumed.
        """
        run = cls(verb, Path(out) if out else _fresh_folder(verb), **voice)
        run.replay_of = replay_of
        if not resume and run.folder.exists() and not _is_empty(run.folder):
            raise UsageError(str(run.folder), "is not empty", do="Choose another --out or remove it")
        run._created = not run.folder.exists()
        try:
            run.folder.mkdir(parents=True, exist_ok=True)
            if resume:
                files.remove_torn(run.folder)
                run._end_torn_line()
            else:
                files.write_text(run.folder / CONFIG, dump_yaml(config))
            run.event("started", verb=verb, resumed=resume)
        except OSError as error:
            raise files.as_capacity(error, run.folder) from None
        return run

    def event(self, kind: str, **facts: Any) -> None:
        """Append one line to events.jsonl."""
        entry = {"time": round(time.time(), 3), "event": kind, **facts}
        try:
            with (self.folder / EVENTS).open("a", encoding="utf-8") as file:
                file.write(files.to_json(entry, indent=None) + "\n")
        except OSError as error:
            raise files.as_capacity(error, self.folder / EVENTS) from None
        for listener in self.listeners:
            listener(entry)

    def _end_torn_line(self) -> None:
        """What a crash or a full disk has torn ends here, so that the next event is a line of its own."""
        with contextlib.suppress(FileNotFoundError), (self.folder / EVENTS).open("rb+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")

    def events(self) -> Iterator[dict[str, Any]]:
        """All whole lines of events.jsonl; a line torn by a crash is passed over."""
        with (
            contextlib.suppress(FileNotFoundError),
            (self.folder / EVENTS).open(encoding="utf-8", errors="replace") as file,
        ):
            for line in file:
                with contextlib.suppress(ValueError):
                    entry = json.loads(line)
                    if isinstance(entry, dict) and "event" in entry:
                        yield entry

    def say(self, text: str = "", style: str = "") -> None:
        """One line for the person at the screen."""
        if not self.quiet:
            self.console.print(text, style=style or None, markup=False)

    def warn(self, text: str) -> None:
        """A line that must not be overlooked: on screen and in events.jsonl."""
        self.event("warning", text=text)
        self.console.print(f"! {text}", style="bold yellow", markup=False)

    def progress(self, label: str, total: int, unit: str = "") -> Progress:
        """A progress display, used as a context manager."""
        return Progress(self, label, total, unit)

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json and the closing event."""
        files.write_json(self.folder / RESULT, result)
        self.event("finished", seconds=round(time.time() - self.started, 3))

    def fail(self, error: BaseException) -> None:
        """Note the failure; a folder made for this run that holds no work is removed again."""
        if not self.folder.is_dir():
            return
        paused = isinstance(error, Paused)
        with contextlib.suppress(OSError, CapacityError):  # the disk may be what failed
            self._end_torn_line()
            self.event("paused" if paused else "failed", error=str(error))
        held = {path.name for path in self.folder.iterdir()}
        if self._created and held <= {CONFIG, EVENTS, LOCK} and not paused:
            shutil.rmtree(self.folder, ignore_errors=True)


def _is_empty(folder: Path) -> bool:
    """Whether a run may begin there; a run that was killed while its config was written has begun nothing."""
    return folder.is_dir() and all(files.is_torn(path) for path in folder.iterdir())


def _fresh_folder(verb: str) -> Path:
    stem = Path("runs") / f"{verb}-{time.strftime('%Y%m%d-%H%M%S')}"
    return next(
        folder
        for n in range(1, 1000)
        if not (folder := stem if n == 1 else stem.with_name(f"{stem.name}-{n}")).exists()
    )
