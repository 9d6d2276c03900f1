"""What enters the first trained layer, computed once a token and read from disk in every later epoch, evaluation and run.

The states of a split lie in one file under the cache folder, in the order of its tokens. Everything they depend on names
the folder: weights, tokens, the layer they enter, precision, libraries.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core import files
from tunesmith.core.errors import CapacityError, UsageError
from tunesmith.core.kept import SPARE_BYTES, remove_unused, shelf, used
from tunesmith.models.split import not_repeatable, states_before
from tunesmith.training.distributed import Team, on_device
from tunesmith.training.loop import count_steps

if TYPE_CHECKING:
    import torch

    from tunesmith.core.run import Run
    from tunesmith.data.dataset import Rows
    from tunesmith.models.shape import Shape

OPTION = "memory.activation_cache"
WORTH = 0.25
"""Share of the layers below which leaving them out is not worth the disk."""
TOKENS_AT_ONCE = 2048
"""Of one pass that fills the cache; the same for every run, so that all runs read the same numbers."""
SAVE_SECONDS = 20
FACTS, STATES = "states.json", "states.bin"


def attach_states(
    config: Any, model: Any, shape: Shape, splits: Mapping[str, Rows], key: Mapping[str, Any], run: Run
) -> int:
    """Give every split of a TrainConfig the states that enter its first trained layer, where this is of use.

    `model` is the base, before the method is put on it; `key` names all that the states depend on beside the layer, and the
    `device` they are made on.
    Returns that layer's number, 0 where the run does without. Raises UsageError where the config asks for states that
    would be wrong, CapacityError where it asks for them and the disk has no room.
    """
    wish = config.memory.activation_cache
    entry, reason = first_computed(config, model, shape, splits["train"])
    if reason and wish == "on":
        raise UsageError(OPTION, reason, got="on", do="Leave it out")
    if reason:
        run.say(f"cache     none, the first {entry} layers are computed in every epoch: {reason}")
    if reason or not entry:
        return 0
    try:
        for split, rows in splits.items():
            if len(rows):
                _attach(model, split, rows, entry, key, run)
    except CapacityError as error:
        if wish == "on":
            raise
        run.warn(f"the first {entry} layers are computed in every epoch: {error}")
        for rows in splits.values():
            rows.states = None
            rows.extras.pop("entry", None)
        return 0
    return entry


def first_computed(config: Any, model: Any, shape: Shape, rows: Rows) -> tuple[int, str | None]:
    """(layer that the states of a TrainConfig's run are to enter, None), (that layer, why they cannot), or (0, None)."""
    wish, entry = config.memory.activation_cache, config.method.footprint(shape).untouched(shape)
    if wish == "off" or (wish == "auto" and (entry < WORTH * shape.layers or _epochs(config, rows) <= 1)):
        return 0, None
    return entry, _unfit(config, entry) or not_repeatable(model)


def spared_layers(config: Any, model: Any, shape: Shape) -> int:
    """Layers at the front whose output a run reads from disk after its first epoch, where nothing is said of it.

    `config` is train's or plan's; 0 where the run does without.
    """
    entry = config.method.footprint(shape).untouched(shape)
    return 0 if entry < WORTH * shape.layers or _unfit(config, entry) or not_repeatable(model) else entry


def _epochs(config: Any, rows: Rows) -> float:
    """How often the run reads its rows."""
    per_step = Team(processes=config.devices.total).batch(config.batch)
    per_epoch, steps = count_steps(len(rows), per_step, config.optimizer)
    return steps / per_epoch


def _unfit(config: Any, entry: int) -> str | None:
    """What of the config makes cached states wrong or useless."""
    if not entry:
        return f"method {config.method.kind} trains the first layer or what stands before it"
    if config.objective.kind in {"ppo", "grpo"}:
        return f"objective {config.objective.kind} learns from answers that are new in every step"
    if getattr(config.objective, "neftune_alpha", None):
        return "objective.neftune_alpha changes the embeddings in every step"
    if config.devices.spreads_weights:
        return "the layers are spread over processes"
    return None


def _attach(model: Any, split: str, rows: Rows, entry: int, key: Mapping[str, Any], run: Run) -> None:
    import numpy as np

    folder = shelf("activations") / files.fingerprint({**key, "split": split, "entry": entry})
    with _alone(folder, run):
        states, filled = _begun(folder, rows.tokens)
        batches, started = _batches(rows), time.monotonic()
        if filled < len(batches):
            remove_unused(folder.parent, run.say, FACTS)
            with (
                on_device(model, key["device"]) as device,
                run.progress(f"{split}: first {entry} layers", len(batches), "batches") as bar,
            ):
                make = _maker(model, rows, entry, device, is_bf16=key["precision"] == "bf16")
                bar.skip(filled)
                for done, made in enumerate(map(make, batches[filled:]), filled + 1):
                    states = states or _reserve(folder, rows.tokens, made[0])
                    for place, own in zip(batches[done - 1], made, strict=True):
                        states.write(rows.span(*place), own)
                    if done == len(batches) or time.monotonic() - states.noted > SAVE_SECONDS:
                        states.note(done)
                    bar.advance(1)
        seconds = round(time.monotonic() - started, 3)
    assert states
    used(folder / FACTS)
    run.event("cached", split=split, layers=entry, seconds=seconds, size_bytes=states.size_bytes)
    run.say(f"cache     {split}: the first {entry} layers from {folder}, {states.size_bytes / 2**30:.2f} GiB")
    rows.states, rows.extras["entry"] = states.read, np.full(len(rows), entry)


Places = list[tuple[int, int]]
"""(row, which of its sequences)"""


class _States:
    """A file of states, (tokens, D), and what is written down of how far it is filled.

    Read and written by place and not mapped: pages of a mapped file would count as memory of the run.
    """

    def __init__(self, folder: Path, width: int, dtype: torch.dtype) -> None:
        self._file, self._facts = (folder / STATES).open("r+b", buffering=0), folder / FACTS
        self._width, self._dtype, self.noted = width, dtype, time.monotonic()

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return os.fstat(self._file.fileno()).st_size

    def read(self, span: slice) -> torch.Tensor:
        """The states of some tokens, (T, D)."""
        import torch

        row = self._width * self._dtype.itemsize
        found = os.pread(self._file.fileno(), (span.stop - span.start) * row, span.start * row)
        return torch.frombuffer(bytearray(found), dtype=self._dtype).view(-1, self._width)

    def write(self, span: slice, states: torch.Tensor) -> None:
        """Put states where their tokens stand."""
        import torch

        own = states.contiguous().view(torch.uint8).numpy()
        os.pwrite(self._file.fileno(), own.tobytes(), span.start * self._width * self._dtype.itemsize)

    def note(self, batches: int) -> None:
        """Write down that so many batches lie on the disk: a run that is cut off goes on there."""
        os.fsync(self._file.fileno())
        dtype = str(self._dtype).removeprefix("torch.")
        files.write_json(self._facts, {"batches": batches, "dtype": dtype, "width": self._width})
        self.noted = time.monotonic()


def _batches(rows: Rows) -> list[Places]:
    """All sequences, those of like length together, in passes of at most TOKENS_AT_ONCE."""
    places = [(number, nth) for number in range(len(rows)) for nth in range(rows.each)]
    sizes = {place: (span := rows.span(*place)).stop - span.start for place in places}
    made: list[Places] = []
    for place in sorted(places, key=lambda place: sizes[place]):
        if made and sizes[place] * (len(made[-1]) + 1) <= TOKENS_AT_ONCE:
            made[-1].append(place)
        else:
            made.append([place])
    return made


def _maker(
    model: Any, rows: Rows, entry: int, device: torch.device, *, is_bf16: bool
) -> Callable[[Places], list[torch.Tensor]]:
    """A function that makes the states (T, D) of some sequences."""
    import torch

    from tunesmith.data.batch import pad_sequences

    def make(places: Places) -> list[torch.Tensor]:
        chosen = [rows.sequences(number)[nth] for number, nth in places]
        batch = {name: value.to(device) for name, value in pad_sequences(chosen, 0).items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
            states = states_before(model, batch, entry).cpu()
        return [line[: len(row.ids)] for line, row in zip(states, chosen, strict=True)]

    return make


def _begun(folder: Path, tokens: int) -> tuple[_States | None, int]:
    """What is stored already, and of how many batches."""
    import torch

    if not (folder / FACTS).is_file() or not (folder / STATES).is_file():
        return None, 0
    facts = files.read_json(folder / FACTS)
    dtype = getattr(torch, facts["dtype"])
    if (folder / STATES).stat().st_size != tokens * facts["width"] * dtype.itemsize:
        return None, 0
    return _States(folder, facts["width"], dtype), facts["batches"]


def _reserve(folder: Path, tokens: int, like: torch.Tensor) -> _States:
    """A file with room for the states of all tokens. Raises CapacityError where the disk has none."""
    size, free = tokens * like.shape[1] * like.element_size(), shutil.disk_usage(folder).free
    if size + SPARE_BYTES > free:
        raise CapacityError(
            str(folder), f"the cached states need {size / 2**30:.1f} GiB, and 2 GiB are left to checkpoints",
            got=f"{free / 2**30:.1f} GiB free", do=f"Free some space, or --{OPTION} off",
        )  # fmt: skip
    with (folder / STATES).open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise files.as_capacity(error, folder) from None
    return _States(folder, like.shape[1], like.dtype)


@contextmanager
def _alone(folder: Path, run: Run) -> Iterator[None]:
    """One process at a time fills a folder; another one waits for it, and finds it filled."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            run.say(f"waiting for another run that fills {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
