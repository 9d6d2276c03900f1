"""An orderly stop: after the first SIGTERM or Ctrl-C the running step is finished and saved, a second one ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from tunesmith.core.errors import Interrupted, Paused

if TYPE_CHECKING:
    from tunesmith.core.run import Run
    from tunesmith.training.distributed import Team

SIGNALS = (signal.SIGTERM, signal.SIGINT)
NOTICE = "stopping: the running step is finished and saved; once more ends at once\n"


class Stop:
    """Hears the signals while it is entered; `asked` is the name of the first one, or empty.

    Outside the main thread, where no signal can be heard, it does nothing.
    """

    def __init__(self, run: Run) -> None:
        self.asked = ""
        self._run, self._doing = run, ""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self, doing: str = "in an evaluation") -> Iterator[None]:
        """While it lasts the first signal raises Paused where it finds the work: an evaluation can be made again."""
        self._doing = doing
        try:
            if self.asked:
                raise self.paused(doing)
            yield
        finally:
            self._doing = ""

    def agreed(self, team: Team) -> str:
        """`asked`, or what any process of the team has heard, the same in all of them."""
        heard = team.total({number.name: float(self.asked == number.name) for number in SIGNALS})
        asked = next((name for name in sorted(heard) if heard[name]), "")
        self.asked = asked or self.asked  # one that has come meanwhile is agreed on next time
        return asked

    def paused(self, when: str) -> Paused:
        """The error that ends the run, naming the signal and how to go on."""
        return Paused("train", f"stopped by {self.asked} {when}", do=f"tunesmith train {self._run.folder} --resume")

    def _hear(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.asked:
            again = f"tunesmith train {self._run.folder} --resume goes on after the last checkpoint"
            raise Interrupted("train", f"ended at once by a second signal, {name}", do=again)
        self.asked = name
        if not self._run.quiet:
            with contextlib.suppress(OSError):
                os.write(2, NOTICE.encode())  # print may be in the middle of a line of its own
        if self._doing:
            raise self.paused(self._doing)
