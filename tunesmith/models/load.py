"""From the name of a model to its files, tokenizer and weights. Safetensors only, remote code off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.core import files, hub
from tunesmith.core.errors import ModelError, UsageError
from tunesmith.models.overlay import OVERLAY, is_overlay, put_overlay
from tunesmith.models.stored import tensors_in, weights_fingerprint

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER = "adapter_config.json"
NOTES = (ADAPTER, OVERLAY)
"""Files by which a folder is known as one of weights that go over a base; each names it."""
PACKAGE = "package.json"
PRECISIONS = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class Found:
    """A model on disk: base weights in `base`, the adapter over them or None, and the GGUF file where that is asked."""

    name: str
    base: Path
    adapter: Path | None = None
    gguf: Path | None = None
    under: tuple[Path, ...] = ()
    """Adapters that are merged into the base before `adapter` goes over it: each was trained on top of the one before."""
    is_reward: bool = False
    """To be loaded as a model that scores answers (models/scoring.py)."""

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer and chat template to use lie: beside the adapter when there is one."""
        has_own = self.adapter and (self.adapter / "tokenizer_config.json").is_file()
        return self.adapter if self.adapter and has_own else self.base


def find(model: str) -> Found:
    """Find a model by what a person types: `embedded`, a folder of weights, a checkpoint, a run, a package, a .gguf
    file, `hf:ID`, a bare ID or `ms:ID`.

    Raises ModelError when it is none of these, or an adapter whose base is another model.
    """
    if model == hub.EMBEDDED:
        from tunesmith.models.embedded import embedded_folder

        return Found(model, embedded_folder())
    path = Path(model)
    if path.is_file() and path.suffix == ".gguf":
        return Found(path.stem, path.parent, gguf=path)
    folder = _follow_run(hub.locate(model))
    if note_of(folder):
        return _with_base(folder)
    if (folder / PACKAGE).is_file() and not (folder / "config.json").is_file():
        return _package(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(model, "is not a model, checkpoint, run or package", do="It has no config.json")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            model, "has no safetensors weights", do="Other formats can run code when loaded; convert it first"
        )
    return Found(model, folder)


def _follow_run(folder: Path) -> Path:
    """A run folder stands for what it made."""
    result = folder / "result.json"
    if not result.is_file():
        return folder
    made = files.read_object(result)
    target = made.get("checkpoint") or made.get("package")
    if not target:
        raise ModelError(str(folder), "is a run that made no model")
    inside = folder / Path(target).name  # a run folder may have been moved
    for candidate in (Path(target), inside, folder / "checkpoints" / Path(target).name):
        if candidate.is_dir():
            return candidate
    raise ModelError(str(folder), "names a model that is gone", got=target)


def note_of(folder: Path) -> dict[str, Any]:
    """What an adapter, or trained weights without their base, say of themselves; empty for any other folder."""
    note = next((folder / name for name in NOTES if (folder / name).is_file()), None)
    return files.read_object(note) if note else {}


def _with_base(adapter: Path) -> Found:
    """An adapter with the base it was trained on; the base's weights must be the same bytes where that is known."""
    typed = note_of(adapter).get("base_model_name_or_path") or ""
    manifest = adapter / files.MANIFEST
    known = files.read_object(manifest).get("base", {}) if manifest.is_file() else {}
    typed = known.get("model") or typed
    if not typed:
        raise ModelError(str(adapter), "does not say which base model it belongs to")
    try:
        base = as_base(find(typed))
    except ModelError as error:
        why = str(error).removeprefix(f"{typed}: ")
        raise ModelError(str(adapter), f"was trained on {typed!r}, which cannot be had: {why}") from None
    if known.get("weights_sha256") and known["weights_sha256"] != identity(base):
        raise ModelError(
            str(adapter),
            f"was trained on another base than {typed!r} is now",
            got=str(base.base),
            do="Put the base model back that it was trained on",
        )
    return replace(base, name=str(adapter), adapter=adapter)


def as_base(found: Found) -> Found:
    """The model as one to train on: its adapter becomes a part of the base.

    Raises ModelError for that of a reward model, whose weights speak only through its head.
    """
    if not found.adapter:
        return found
    if gives_scores(found):
        raise ModelError(found.name, "is a reward model, so nothing is trained on top of it", do="Train on its base")
    return replace(found, adapter=None, under=(*found.under, found.adapter))


def identity(base: Found) -> str:
    """Identity of a base model's weights, adapters that are merged into it included."""
    own = weights_fingerprint(base.base)
    return files.fingerprint([own, *(weights_fingerprint(folder) for folder in base.under)]) if base.under else own


def _package(folder: Path) -> Found:
    inside = files.read_object(folder / PACKAGE)
    weights, gguf, adapter = (
        folder / inside[key] if inside.get(key) else None for key in ("weights", "gguf", "adapter")
    )
    if weights is None and gguf is None:
        raise ModelError(str(folder), "is a package without weights")
    return Found(inside.get("name", folder.name), weights or folder, adapter, gguf)


def method_beside(note: Mapping[str, Any]) -> str | None:
    """The method of an adapter, by its note, that changes no weights and can only stand beside them; None for others."""
    from tunesmith.models.methods.bottleneck import FORMAT
    from tunesmith.models.virtual import METHODS

    return note.get(FORMAT) or METHODS.get(note.get("peft_type", ""))


def load_tokenizer(found: Found) -> PreTrainedTokenizerBase:
    """The model's own tokenizer with its chat template. Raises ModelError when either cannot be used."""
    from transformers import AutoTokenizer

    folder = found.tokenizer_folder
    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer.model").is_file():
        raise ModelError(str(folder), "has no tokenizer", do="It needs tokenizer.json or tokenizer.model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        raise ModelError(str(folder), f"has a tokenizer that cannot be read: {error}", do="Fetch it again") from None
    if not tokenizer.is_fast:
        raise ModelError(str(folder), "has only a slow tokenizer", do="Convert it to tokenizer.json")
    if not tokenizer.chat_template:
        raise ModelError(str(folder), "has no chat template", do="Use the model's chat or instruct version")
    return tokenizer


def safe_config(folder: Path) -> Any:
    """The model's config without the fields that name code to fetch (`auto_map`, attention kernels)."""
    from transformers import AutoConfig

    raw = files.read_object(folder / "config.json")
    risky = [key for key in raw if key == "auto_map" or key.startswith("_attn_implementation")]
    if risky:
        raise ModelError(
            str(folder / "config.json"),
            f"names code to run ({', '.join(risky)})",
            do="Remove these keys if you trust the rest",
        )
    return AutoConfig.from_pretrained(folder, trust_remote_code=False)


def gives_scores(found: Found) -> bool:
    """Whether what lies on disk is a reward model, which scores answers and gives none."""
    if found.adapter:
        return note_of(found.adapter).get("task_type") == "SEQ_CLS"
    kinds = files.read_object(found.base / "config.json").get("architectures") or []
    return any(kind.endswith("ForSequenceClassification") for kind in kinds)


def load_model(
    found: Found, precision: PRECISIONS = "fp32", *, device: str = "cpu", merged: bool = False, quantization: Any = None
) -> PreTrainedModel:
    """Load weights in `precision`, with the adapter over them where there is one.

    `quantization` is what transformers takes as quantization_config: weights are then quantized while they are loaded.

    `merged` adds what the adapter changes to the weights, which generates twice as fast; adapters that change no weights
    stay beside them.

    Raises ModelError for weights that do not fit the config, or an adapter that does not fit the base.
    """
    import torch

    if not found.is_reward and gives_scores(found):
        raise ModelError(
            found.name, "is a reward model: it scores answers and gives none", do="Use it to train by PPO or GRPO"
        )
    dtype: torch.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    if quantization and found.under:
        raise ModelError(
            found.name, "has an adapter, which cannot be merged into quantized weights", do="Export it first"
        )
    few_bits = {"quantization_config": quantization, "device_map": {"": device}} if quantization else {}
    model = _read(found, dtype=torch.float32 if found.under else dtype, **few_bits)
    for adapter in found.under:
        model = _merged(put_adapter(model, adapter, task=None), adapter).to(dtype)
        model.name_or_path = found.name  # what peft writes down as the base of the next adapter
    if found.adapter:
        model = put_adapter(model, found.adapter, task="SEQ_CLS" if found.is_reward else "CAUSAL_LM")
        if merged and hasattr(model, "merge_and_unload"):
            model = merge_adapter(model)
    return model if quantization else model.to(device)  # pyright: ignore[reportArgumentType]


def merge_adapter(model: Any) -> PreTrainedModel:
    """A peft model's base with what the adapter changes added to its weights; the model given is used up.

    An output head with an adapter of its own is untied first: its change is none of the embedding's.
    """
    import torch

    head = getattr(model.get_output_embeddings(), "base_layer", None)
    if head is not None and head.weight is model.get_input_embeddings().weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
    return model.merge_and_unload()


def _read(found: Found, **how: Any) -> Any:
    """The base's own weights; a reward model's head in fp32, of random weights where the base has none."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    config, before = safe_config(found.base), logging.get_verbosity()
    for path in found.base.glob("*.safetensors"):
        tensors_in(path)
    if not found.is_reward:
        return _whole(AutoModelForCausalLM, found, config=config, **how)
    config.num_labels = 1
    logging.set_verbosity_error()  # that a new head has no weights yet is what was asked for
    try:
        model = _whole(AutoModelForSequenceClassification, found, config=config, **how)
    finally:
        logging.set_verbosity(before)
    model.score.float()
    return model


def _whole(kind: Any, found: Found, **how: Any) -> Any:
    """A model all of whose weights are in its files, but a reward model's head. Raises ModelError where some are not.

    transformers draws random numbers for those.
    """
    model, seen = kind.from_pretrained(
        found.base, use_safetensors=True, trust_remote_code=False, ignore_mismatched_sizes=True, output_loading_info=True,
        **how,
    )  # fmt: skip
    shaped = sorted(name for name, *_ in seen["mismatched_keys"])
    lacking = sorted(name for name in seen["missing_keys"] if not (found.is_reward and name.startswith("score.")))
    for names, what in ((shaped, "has weights of another shape than"), (lacking, "lacks weights that")):
        if names:
            raise ModelError(
                str(found.base), f"{what} its config asks for, first: {names[0]}", do="Put the files of one model together"
            )  # fmt: skip
    return model


def _merged(model: Any, adapter: Path) -> Any:
    if is_overlay(adapter):
        return model
    if not hasattr(model, "merge_and_unload"):
        raise ModelError(
            str(adapter), "changes no weights, so nothing can be trained on top of it", do="Train on its base"
        )
    return merge_adapter(model)


def put_adapter(model: Any, adapter: Path, *, task: str | None = "CAUSAL_LM") -> Any:
    """What was trained over a model's weights, or beside them. Raises ModelError where it does not fit them.

    `task` is what peft calls the model's task, None where only weights are changed.
    """
    from peft import PeftConfig, PeftModel

    from tunesmith.models.methods.bottleneck import FORMAT, put_saved

    note = note_of(adapter)
    if is_overlay(adapter):
        return put_overlay(model, adapter)
    try:
        if FORMAT in note:
            return put_saved(model, adapter, note)
        config = PeftConfig.from_pretrained(str(adapter))
        config.task_type = task
        return PeftModel.from_pretrained(model, adapter, config=config, is_trainable=False, low_cpu_mem_usage=False)
    except (RuntimeError, ValueError, KeyError, UsageError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            str(adapter), f"does not fit this base model: {reason}", do="Use the base it was trained on"
        ) from None
