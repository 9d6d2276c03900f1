"""Trained weights on their own, to be put over the base they were trained from. Knows no method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.core import files
from tunesmith.core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from tunesmith.models.load import Found

OVERLAY = "trained_weights.json"
TENSORS = "trained_weights.safetensors"


def is_overlay(folder: Path) -> bool:
    """Whether a folder holds weights that take the place of the base's own."""
    return (folder / OVERLAY).is_file()


def write_overlay(model: Any, folder: Path) -> None:
    """Write the parameters that are trained, in fp32 under the names of the base, and a note that says whose they are."""
    from safetensors.torch import save_file

    from tunesmith.models.scoring import task_of

    tensors = {name: p.detach().float().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    note = {"base_model_name_or_path": model.name_or_path, "task_type": task_of(model), "tensors": sorted(tensors)}
    files.write_json(folder / OVERLAY, note)


def put_overlay(model: Any, folder: Path) -> Any:
    """Put saved weights over a model, in the precision it has. Raises ModelError where they are not its own."""
    import torch
    from safetensors.torch import load_file

    known = dict(model.named_parameters())
    for name, tensor in load_file(folder / TENSORS).items():
        if name not in known or known[name].shape != tensor.shape:
            raise ModelError(
                str(folder), f"does not fit this base model: {name} {tuple(tensor.shape)}", do="Use the base it was trained on"
            )  # fmt: skip
        with torch.no_grad():
            known[name].copy_(tensor)
    return model


def take_stored(model: Any, found: Found, names: Iterable[str]) -> None:
    """Give parameters back the exact numbers that the base's files hold, in fp32.

    For weights that are to be trained in a model that was loaded in less precision than it is stored in. Where adapters are
    merged into the base, no file holds the numbers: then the base is loaded once more, in fp32. Raises ModelError for a name
    that the files do not have.
    """
    import torch

    known = dict(model.named_parameters())
    if found.under:
        from tunesmith.models.load import load_model

        exact = dict(load_model(found, "fp32").named_parameters())
        stored = {name: exact[name].detach() for name in names}
    else:
        stored = _read(found.base, {name: _spellings(model, name) for name in names})
    for name, tensor in stored.items():
        known[name].data = tensor.to(known[name].device, torch.float32)


def _spellings(model: Any, name: str) -> set[str]:
    """Files of a bare decoder leave out the prefix that the model with its head has."""
    return {name, name.removeprefix(f"{model.base_model_prefix}.")}


def _read(folder: Path, wanted: dict[str, set[str]]) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            held = set(file.keys())
            for name, spellings in wanted.items():
                for spelling in spellings & held:
                    found[name] = file.get_tensor(spelling)
    missing = next((name for name in wanted if name not in found), None)
    if missing:
        raise ModelError(str(folder), "stores no weights by this name, so they cannot be trained exactly", got=missing)
    return found
