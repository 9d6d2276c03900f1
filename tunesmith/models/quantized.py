"""A base model in four bits by bitsandbytes. Knows NF4, not what is trained beside it."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from tunesmith.core import files, hardware
from tunesmith.core.errors import MissingExtra, ModelError
from tunesmith.models.load import PRECISIONS, Found, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_nf4(found: Found, precision: PRECISIONS, *, double: bool) -> PreTrainedModel:
    """Load a base with every linear layer but the output head in NF4, blocks of 64; they compute in `precision`.

    Raises MissingExtra without bitsandbytes, ModelError for a base that is quantized already.
    """
    need_bitsandbytes()
    if "quantization_config" in files.read_object(found.base / "config.json"):
        raise ModelError(
            str(found.base), "is quantized already", do="Give the model it was made from, or train by lora"
        )
    import torch
    from transformers import BitsAndBytesConfig

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    wish = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double, bnb_4bit_compute_dtype=dtype
    )
    model = load_model(found, precision, device=hardware.probe().device, quantization=wish)
    _keep_layout(model)
    return model


def need_bitsandbytes() -> None:
    """Raise MissingExtra where bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra("method.kind: qlora", "bitsandbytes is not installed", do="pip install 'tunesmith[qlora]'")


def _keep_layout(model: Any) -> None:
    """Forbid the CPU layout that bitsandbytes gives weights at the first evaluation: it has no gradient, nor a way back."""
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
