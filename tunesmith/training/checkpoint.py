"""Checkpoints that are complete or absent, and exact resume. Weights lie in the layout of peft or transformers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunesmith.core import files
from tunesmith.core.config import Config
from tunesmith.models.saving import disk_errors

if TYPE_CHECKING:
    import torch

    from tunesmith.core.run import Run

STATE = "state"


class SaveConfig(Config):
    """When checkpoints are written and how many stay."""

    every_steps: Annotated[int, Field(ge=1)] = 100
    """Optimizer steps between two checkpoints; the last step is always saved."""
    keep: Annotated[int, Field(ge=1)] = 2
    """How many of the newest checkpoints stay; the best one stays beside them."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands after a step, and what it knows by then."""

    step: int
    best_loss: float | None = None
    best_step: int | None = None
    bad_evaluations: int = 0
    """Evaluations since the best one."""
    judged_step: int = 0
    """The last step that was followed by an evaluation; an evaluation that a stop cut off is made up for."""
    held_out_loss: float | None = None
    """The last one."""


def folder_of(run_folder: Path, step: int) -> Path:
    """The checkpoint folder of a step."""
    return run_folder / "checkpoints" / f"checkpoint-{step:06d}"


def complete_checkpoints(run: Run) -> list[Path]:
    """All whole checkpoints of a run, oldest first; torn ones are renamed to `.torn` and named aloud."""
    whole: list[Path] = []
    files.remove_torn(run.folder / "checkpoints")
    for path in sorted((run.folder / "checkpoints").glob("checkpoint-*")):
        if path.is_dir() and not path.name.endswith(".torn"):
            wrong = files.verify(path)
            if wrong:
                run.warn(f"{path.name} {wrong}; set aside as {path.name}.torn")
                os.rename(path, path.with_name(f"{path.name}.torn"))
            else:
                whole.append(path)
    return whole


def save(
    target: Path, position: Position, optimizer: torch.optim.Optimizer, *, weights: Any, facts: dict[str, Any],
    randoms: Sequence[Random] = (),
) -> None:  # fmt: skip
    """Write a checkpoint: weights by `weights(folder)`, then optimizer, random state and position under state/.

    `randoms` are the states of all processes where there are several.
    Raises CapacityError when the disk is full; the checkpoints before stay whole.
    """
    from dataclasses import asdict

    if target.exists():
        return
    with (
        disk_errors(target, "Free some space, then --resume"),
        files.new_folder(target, step=position.step, **facts) as folder,
    ):
        weights(folder)
        state = folder / STATE
        state.mkdir()
        _write_optimizer(state, optimizer)
        for rank, random_state in enumerate(randoms or [random_now()]):
            _write_random(state, rank, random_state)
        files.write_json(state / "position.json", asdict(position))


def _write_optimizer(state: Path, optimizer: torch.optim.Optimizer) -> None:
    """Tensors of any dtype into safetensors, plain numbers beside them into JSON."""
    import torch
    from safetensors.torch import save_file

    entries = dict(_flat(optimizer.state_dict()["state"]))
    tensors, seen = {}, set[int]()
    for key, value in entries.items():
        if isinstance(value, torch.Tensor):
            memory = value.untyped_storage().data_ptr()
            own = value.detach().clone() if memory in seen else value.detach()  # a table that parameters share
            tensors[key] = own.cpu().contiguous()
            seen.add(memory)
    save_file(tensors, state / "optimizer.safetensors")
    files.write_json(state / "optimizer.json", {k: value for k, value in entries.items() if k not in tensors})


def _flat(entries: dict[Any, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of a dict of dicts."""
    for name, value in entries.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value


def seed_everything(seed: int) -> None:
    """Seed all generators that a checkpoint holds: torch's, numpy's and Python's."""
    import random

    import numpy as np
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


Random = tuple[dict[str, "torch.Tensor"], dict[str, Any]]
"""The state of all generators of a process: tensors, and what JSON can hold."""


def random_now() -> Random:
    """The state of this process's generators; of several GPUs the one it computes on."""
    import random

    import numpy as np
    import torch

    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda0"] = torch.cuda.get_rng_state()
    kind, keys, *rest = np.random.get_state()
    return tensors, {"python": random.getstate(), "numpy": [kind, np.asarray(keys).tolist(), *rest]}


def _random_files(state: Path, rank: int) -> tuple[Path, Path]:
    stem = f"random-{rank}" if rank else "random"
    return state / f"{stem}.safetensors", state / f"{stem}.json"


def _write_random(state: Path, rank: int, random_state: Random) -> None:
    from safetensors.torch import save_file

    tensors, words = _random_files(state, rank)
    save_file(random_state[0], tensors)
    files.write_json(words, random_state[1])


def put_random(random_state: Random) -> None:
    """Give this process's generators a state that `random_now` returned."""
    import random

    import numpy as np
    import torch

    tensors, words = random_state
    torch.set_rng_state(tensors["cpu"])
    if "cuda0" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda0"])
    version, internal, following = words["python"]
    random.setstate((version, tuple(internal), following))
    np.random.set_state(tuple(words["numpy"]))


def _restore_random(state: Path, rank: int) -> None:
    """A process that the checkpoint does not know gets a state of its own, drawn from the first one's."""
    import torch
    from safetensors.torch import load_file

    if not _random_files(state, rank)[0].is_file():
        _restore_random(state, 0)
        seed_everything(int(torch.randint(2**31, ())) + rank)
        return
    saved_tensors, saved_words = _random_files(state, rank)
    put_random((load_file(saved_tensors), files.read_json(saved_words)))


def restore(folder: Path, optimizer: torch.optim.Optimizer, rank: int = 0) -> Position:
    """Put the optimizer of a checkpoint and the random state of a process back. Returns the checkpoint's position."""
    from safetensors.torch import load_file

    state: dict[int, Any] = {}
    numbers = files.read_json(folder / STATE / "optimizer.json")
    for key, value in (load_file(folder / STATE / "optimizer.safetensors") | numbers).items():
        number, *between, name = key.split(".")
        place = state.setdefault(int(number), {})
        for part in between:
            place = place.setdefault(part, {})
        place[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    _restore_random(folder / STATE, rank)
    return Position(**files.read_json(folder / STATE / "position.json"))


def remove_old(run_folder: Path, keep: int, best_step: int | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best one."""
    folders = sorted(path for path in (run_folder / "checkpoints").glob("checkpoint-*") if path.name[-6:].isdigit())
    for path in folders[:-keep]:
        if best_step is None or path != folder_of(run_folder, best_step):
            leaving = path.with_name(f"{path.name}.tmp-old")  # half removed, it must not look like a torn checkpoint
            os.rename(path, leaving)
            shutil.rmtree(leaving)
