"""What a run depends on, in `lock.json`: config, data, template, base weights, versions, seed, threads, machine."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core import files
from tunesmith.core.config import dump_yaml
from tunesmith.core.errors import DataError, ModelError, UsageError
from tunesmith.core.run import CONFIG, LOCK, Run
from tunesmith.training.distributed import check_same_step

if TYPE_CHECKING:
    from tunesmith.core.artifacts import Dataset
    from tunesmith.core.config import Config

PACKAGES = (
    "torch", "transformers", "tokenizers", "peft", "accelerate", "safetensors", "numpy", "bitsandbytes", "deepspeed",
)  # fmt: skip
"""Those whose version may change a number of the series; one that is not installed is left out."""


def make_lock(config: Config, dataset: Dataset, weights_sha256: str, *, seed: int, precision: str) -> dict[str, Any]:
    """Everything that decides the numbers of a training run, as JSON."""
    return {
        "config": config.model_dump(mode="json"),
        "data": {"data_sha256": dataset.data_sha256, "template_sha256": dataset.template_sha256},
        "weights": {"weights_sha256": weights_sha256},
        "versions": versions(),
        "machine": {**machine(), "precision": precision},
        "seed": seed,
    }


def versions() -> dict[str, str]:
    """The versions that may change a number of the series."""
    from tunesmith import __version__

    found = {"tunesmith": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What computes, as far as it rounds in its own way."""
    import torch

    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {
        "system": platform.system(), "architecture": platform.machine(), "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(), "gpus": gpus,
    }  # fmt: skip


def recall(run: Run, config: Any) -> Any:
    """A TrainConfig with what this very run has chosen for it, where it is resumed: trials are not made again."""
    own = run.folder / LOCK
    if not own.is_file():
        return config
    then = type(config).model_validate(files.read_object(own)["config"])
    for part in ("method", "optimizer"):
        now, found = getattr(config, part), getattr(then, part)
        is_open = lambda name, value: value == "auto" or (name == "learning_rate" and value is None)  # noqa: E731
        chosen = {name: getattr(found, name) for name, value in now if is_open(name, value) and hasattr(found, name)}
        config = config.model_copy(update={part: now.model_copy(update=chosen)})
    return config


def settle(run: Run, config: Config, lock: dict[str, Any]) -> None:
    """Write the lock of a new run; a resumed run or a replay is held against the one it comes from.

    `lock` is what `make_lock` says of `config` now. Another version, thread count or machine is said aloud. Raises UsageError,
    DataError or ModelError where config, rows, template or base weights are others: the series cannot be the same.
    """
    own = run.folder / LOCK
    if own.is_file():  # resumed
        before = files.read_object(own)
        run.replay_of = Path(before["replay_of"]) if before.get("replay_of") else None
        then = type(config).model_validate(before["config"])
        others = [name for name in type(config).model_fields if getattr(then, name) != getattr(config, name)]
        if others and not set(others) - {"devices", "batch"}:
            check_same_step(then, config)
        elif others:
            raise UsageError(str(own), f"the config is another one now: {', '.join(others)}", do="Start a new run")
        _compare(run, own, before, lock)
        return
    if run.replay_of:
        origin = run.replay_of / LOCK
        _compare(run, origin, files.read_json(origin), lock)
        lock = {**lock, "replay_of": str(run.replay_of.resolve())}
    files.write_json(own, lock)


def note_choices(run: Run, asked: Config, config: Config) -> None:
    """Let the run's config.yaml name what trials have chosen in place of `auto`; call it once the lock does."""
    if config != asked:
        files.write_text(run.folder / CONFIG, dump_yaml(config))


def _compare(run: Run, path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    if before["data"] != now["data"]:
        what = (
            "the rows are" if before["data"]["template_sha256"] == now["data"]["template_sha256"] else "the template is"
        )
        raise DataError(str(path), f"{what} not what the run was made with", do="Put them back, or start a new run")
    if before["weights"] != now["weights"]:
        raise ModelError(
            str(path), "the base model has other weights than then", do="Put them back, or start a new run"
        )
    for line in differences(before, now):
        run.warn(f"{line}; the loss series may differ in its last bits")


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What else is not as it was, one phrase each: versions, then the machine."""
    return [
        f"{name} was {then.get(name)} and is {here.get(name)}"
        for section in ("versions", "machine")
        for then, here in [(before[section], now[section])]
        for name in {**then, **here}
        if then.get(name) != here.get(name)
    ]
