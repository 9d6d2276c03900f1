"""An adapter into its base, saved so that any runtime stops where training stopped. Knows no GGUF."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.core import files, hardware
from tunesmith.core.errors import CapacityError, ModelError
from tunesmith.core.examples import Message
from tunesmith.data.render import render_text
from tunesmith.exporting.package import BESIDE, WEIGHTS
from tunesmith.models.load import Found, load_model, merge_adapter, note_of
from tunesmith.models.overlay import is_overlay
from tunesmith.models.saving import disk_errors

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Precision = Literal["fp32", "bf16", "fp16"]
_STORED: dict[str, Precision] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def stored_precision(base: Path) -> Precision:
    """The precision in which the base model's weights are stored, as its config says; fp32 where it says nothing."""
    config = files.read_object(base / "config.json")
    typed = config.get("dtype") or config.get("torch_dtype") or "float32"
    if typed not in _STORED:
        raise ModelError(str(base / "config.json"), "has weights in a precision that cannot be merged", got=typed)
    return _STORED[typed]


def load_exact(found: Found) -> PreTrainedModel:
    """The model with its adapter beside it, in fp32 whatever the stored precision, ready for comparison and merging.

    Raises CapacityError when fp32 weights do not fit the memory that is free, ModelError for unusable weights.
    """
    needed = 4 * _parameters(found.base)
    free = hardware.probe().available_bytes
    if needed > free:
        raise CapacityError(
            str(found.base), f"merging needs {needed / 2**30:.1f} GiB of memory (fp32)",
            got=f"{free / 2**30:.1f} GiB free", do="Close other programs or use a larger machine",
        )  # fmt: skip
    model = load_model(found, "fp32")
    model.requires_grad_(requires_grad=False)
    model.eval()
    return model


def merge(model: Any, found: Found) -> PreTrainedModel:
    """`W + scale * B A` into the base's own tensors (LoRA, rsLoRA, DoRA); a model without adapter, or with trained weights
    in place of its own, comes back as it is.

    The model given is used up. Raises ModelError for adapters that are no change of weights (prompt tuning and others).
    """
    if not found.adapter or is_overlay(found.adapter):
        return model
    if not hasattr(model, "merge_and_unload"):
        kind = note_of(found.adapter).get("peft_type")
        raise ModelError(str(found.adapter), "changes no weights, so it cannot be merged", got=kind)
    return merge_adapter(model)


def save_beside(found: Found, tokenizer: PreTrainedTokenizerBase, folder: Path, precision: Precision) -> Found:
    """Write a base model and, in a folder beside it, the adapter that changes no weights; returns them as found again.

    `folder` is the package; weights are saved as `save` does, the adapter as it was trained.
    """
    base, target = replace(found, adapter=None), folder / BESIDE
    save(load_exact(base), tokenizer, folder / WEIGHTS, precision)
    target.mkdir()
    assert found.adapter is not None
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(found.adapter / name, target / name)
    return Found(found.name, folder / WEIGHTS, adapter=target)


def trained_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the token that ends an assistant turn: the first special token behind its text; None where there is none."""
    answer = "ANSWERQ7"
    text = render_text(tokenizer, [Message("user", "QUESTIONQ7"), Message("assistant", answer)])
    behind = text.rpartition(answer)[2]
    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = [(place, number) for content, number in special.items() if (place := behind.find(content)) >= 0]
    return min(found)[1] if found else None


def end_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token id that ends an answer: first the trained one, then those the base model knew."""
    known = model.generation_config.eos_token_id if model.generation_config else None
    configured = getattr(model.config, "eos_token_id", None)
    ids: list[Any] = [trained_end(tokenizer), tokenizer.eos_token_id]
    for value in (known, configured):
        ids += as_list(value)
    return list(dict.fromkeys(number for number in ids if number is not None))


def as_list(ids: int | list[int] | None) -> list[int]:
    """The end tokens of a config: transformers writes one, many or none."""
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def use_trained_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the trained end token the tokenizer's own, as chat models have it: llama.cpp and vLLM stop there.

    It stays as it was where the template writes the old one and would then render other text.
    """
    end = trained_end(tokenizer)
    if end is None or end == tokenizer.eos_token_id:
        return
    talk = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
    before, old = render_text(tokenizer, talk), tokenizer.eos_token
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    if render_text(tokenizer, talk) != before:
        tokenizer.eos_token = old


def save(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, precision: Precision) -> None:
    """Write config, safetensors, generation config with all end tokens, tokenizer and chat template into a new folder.

    Raises CapacityError when the disk is full.
    """
    import torch
    from transformers import GenerationConfig

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    ends = end_ids(model, tokenizer)
    model.config.eos_token_id = ends if len(ends) > 1 else ends[0] if ends else None
    known = (model.generation_config or GenerationConfig()).to_dict()
    known |= {
        "eos_token_id": model.config.eos_token_id,
        "_from_model_config": False,
    }  # not to be made anew from config.json
    if known.get("pad_token_id") is None:
        known["pad_token_id"] = tokenizer.pad_token_id
    model.generation_config = GenerationConfig.from_dict(known)
    tokenizer = deepcopy(tokenizer)
    use_trained_end(tokenizer)
    with disk_errors(folder):
        model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _make_portable(folder / "tokenizer_config.json")
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes files that nobody else may read, a server for instance


def _make_portable(path: Path) -> None:
    """Name no code that other programs would run, and the class by the name that transformers 4 and 5 both know."""
    config = files.read_object(path)
    config.pop("auto_map", None)
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    files.write_json(path, config)


def _parameters(folder: Path) -> int:
    """Numbers in all safetensors of a folder, from their headers."""
    from math import prod

    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        total += sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total
