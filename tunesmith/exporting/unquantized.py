"""QLoRA trains over a base in four bits and is exported over the base as it is stored: what that changes, measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from tunesmith.core import files
from tunesmith.core.errors import DataError
from tunesmith.core.examples import IGNORED
from tunesmith.data.batch import pad_sequences
from tunesmith.data.render import render
from tunesmith.exporting.certificate import Proof
from tunesmith.models.head import label_losses
from tunesmith.models.load import Found, load_model, put_adapter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from tunesmith.core.examples import Conversation

ALLOWED_NATS = 0.02
"""The least by which the loss may rise."""
ALLOWED_SHARE = 0.2
"""Share of what the adapter gained that may be lost."""


def trained_in_four_bits(found: Found) -> dict[str, Any] | None:
    """The options of the QLoRA that a checkpoint comes from; None for any other model."""
    manifest = found.adapter / files.MANIFEST if found.adapter else None
    method = files.read_object(manifest).get("method", {}) if manifest and manifest.is_file() else {}
    return method if method.get("kind") == "qlora" else None


def unquantized_base(
    found: Found,
    exported: Path,
    method: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Conversation],
) -> Proof:
    """Loss of the rows' own answers: over the four-bit base, without and with the adapter, and of the exported weights.

    Passes when the exported loss is above the trained one by no more than ALLOWED_NATS, or ALLOWED_SHARE of what the
    adapter gained where that is more. Raises MissingExtra without bitsandbytes.
    """
    from tunesmith.models.quantized import load_nf4

    rendered = _with_answers(rows, tokenizer)
    if not rendered:
        return Proof("unquantized_base", None, "no row that was asked has an answer to measure")
    assert found.adapter
    base = load_nf4(Found(found.name, found.base), "fp32", double=method["double_quantization"])
    tuned = put_adapter(base, found.adapter).eval()
    with tuned.disable_adapter():
        before = _loss(tuned, rendered, tokenizer)
    trained = _loss(tuned, rendered, tokenizer)
    del base, tuned
    after = _loss(load_model(Found(found.name, exported), "fp32").eval(), rendered, tokenizer)
    allowed = max(ALLOWED_NATS, ALLOWED_SHARE * (before - trained))
    line = (
        f"loss {before:.4f} over the four-bit base, {trained:.4f} as trained, {after:.4f} exported over the stored base"
    )
    return Proof("unquantized_base", after <= trained + allowed, line, {
        "four_bit_base": before, "as_trained": trained, "exported": after, "rise_allowed_nats": allowed,
        "rows": len(rendered),
    })  # fmt: skip


def _with_answers(rows: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    rendered = []
    for row in rows:
        try:
            rendered.append(render(row, tokenizer, 1 << 20))
        except DataError:  # a question alone
            continue
    return rendered


def _loss(model: Any, rendered: list[Any], tokenizer: PreTrainedTokenizerBase) -> float:
    """Nats a token of the answers, row by row."""
    import torch

    total, count = 0.0, 0
    with torch.inference_mode():
        for row in rendered:
            padded = pad_sequences([row], cast(int, tokenizer.pad_token_id or 0))
            batch = {name: tensor.to(model.device) for name, tensor in padded.items()}
            total += label_losses(model, batch).double().sum().item()
            count += int((batch["labels"] != IGNORED).sum())
    return total / max(count, 1)
