"""PiSSA (arXiv 2404.02948): W = rest + scale * B0 A0, where B0 A0 are the largest singular values; B and A are trained.

The base in memory is the rest. On disk stands LoRA of twice the rank, B A - B0 A0, which goes over the base as it was
(section 3 of the paper; peft converts in the same way).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tunesmith.core import files

START = "pissa_start"


def remember(model: Any) -> Any:
    """Keep what the adapters start from, on the model; it is taken off again when they are saved."""
    setattr(model, START, {name: tensor.detach().clone() for name, tensor in _adapters(model).items()})
    return model


def as_lora(model: Any, folder: Path) -> None:
    """Rewrite a saved adapter as LoRA of twice the rank: A' = [A; A0], B' = [B, -B0], the same scale."""
    import torch
    from safetensors.torch import load_file, save_file

    path, start = folder / "adapter_model.safetensors", getattr(model, START)
    state = load_file(path)
    for name, first in start.items():
        sign, side = (1, 0) if ".lora_A." in name else (-1, 1)
        state[name] = torch.cat([state[name], sign * first.to(state[name])], dim=side).contiguous()
    save_file(state, path, metadata={"format": "pt"})
    config = files.read_object(folder / "adapter_config.json")
    grown = math.sqrt(2) if config["use_rslora"] else 2
    config |= {"r": 2 * config["r"], "lora_alpha": config["lora_alpha"] * grown, "init_lora_weights": True}
    files.write_json(folder / "adapter_config.json", config)


def without_start(model: Any, state: dict[str, Any]) -> dict[str, Any]:
    """The trained halves of a saved adapter; the model goes on from the start that is saved with them.

    The start is found anew when a run is resumed, bit for bit on the machine that began it. Where another machine's
    linear algebra rounds differently, the rest is corrected, so that base and adapter mean what they meant.
    """
    import torch

    trained, saved = dict(state), {}
    for name in getattr(model, START):
        side = 0 if ".lora_A." in name else 1
        trained[name], first = (half.contiguous() for half in state[name].chunk(2, dim=side))
        saved[name] = first if side == 0 else -first
    found = getattr(model, START)
    moved = [name for name in saved if not torch.equal(saved[name], found[name].to(saved[name]))]
    for layer in sorted({name.rpartition(".lora_")[0] for name in moved}):
        _correct(model, layer, found, saved)
    setattr(model, START, {name: tensor.to(found[name]) for name, tensor in saved.items()})
    return trained


def _correct(model: Any, layer: str, found: dict[str, Any], saved: dict[str, Any]) -> None:
    import torch

    module = model.get_submodule(layer)
    weight, scale = module.get_base_layer().weight, module.scaling["default"]
    a, b = f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"
    change = scale * (found[b].float() @ found[a].float() - saved[b].float() @ saved[a].float()).to(weight.device)
    change = change.T if module.fan_in_fan_out else change
    with torch.no_grad():
        weight.copy_((weight.float() + change).to(weight.dtype))


def _adapters(model: Any) -> dict[str, Any]:
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor for name, tensor in state.items() if ".lora_A." in name or ".lora_B." in name}
