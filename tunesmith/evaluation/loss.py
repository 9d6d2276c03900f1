"""How surprised a model is by references: loss of the last assistant turn, by the model's own template and loss mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from tunesmith.core import hardware
from tunesmith.core.errors import DataError
from tunesmith.core.examples import IGNORED, Conversation
from tunesmith.data.batch import pad_sequences
from tunesmith.data.render import Rendered, render
from tunesmith.models.head import label_losses
from tunesmith.models.load import PRECISIONS, Found, load_model, load_tokenizer
from tunesmith.models.virtual import virtual_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENS_AT_ONCE = 2048  # padding counted; the logits of a large vocabulary still fit beside the weights


def reference_losses(
    found: Found,
    rows: Sequence[Conversation],
    precision: PRECISIONS,
    done: Callable[[int], object],
) -> list[tuple[float, int]]:
    """Load a model, score the trained turn of every row and free the model: (summed loss in nats, tokens) by row.

    `done` is called with the number of rows after each batch. Raises DataError for a row that the template refuses or
    that is longer than the model's context, ModelError when the model cannot be loaded.
    """
    import torch

    device = hardware.probe().device
    tokenizer = load_tokenizer(found)
    model = load_model(found, precision, device=device).eval()
    rendered = _render_all(rows, tokenizer, model.config.max_position_embeddings - virtual_tokens(model))
    losses = [(0.0, 0)] * len(rows)
    with torch.inference_mode():
        for numbers in _batches([len(row.ids) for row in rendered]):
            padded = pad_sequences(
                [cast(Any, rendered[number]) for number in numbers], cast(int, tokenizer.pad_token_id or 0)
            )
            batch = {name: tensor.to(device) for name, tensor in padded.items()}
            sums = label_losses(model, batch).double().sum(dim=1).tolist()  # (B,)
            counts = (batch["labels"] != IGNORED).sum(dim=1).tolist()  # (B,)
            for number, loss, tokens in zip(numbers, sums, counts, strict=True):
                losses[number] = (loss, tokens)
            done(len(numbers))
    del model
    _free(device)
    return losses


def _free(device: str) -> None:
    """Give the model's memory back before the next one is loaded; peft's wrappers hold each other in circles."""
    import gc

    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _render_all(rows: Sequence[Conversation], tokenizer: PreTrainedTokenizerBase, context: int) -> list[Rendered]:
    rendered = []
    for row in rows:
        try:
            made = render(row, tokenizer, context)
        except DataError as error:
            raise DataError(row.source, str(error).rstrip(".")) from None
        if made.lost_trained:
            raise DataError(
                row.source,
                f"ends {made.lost_tokens} tokens beyond the model's context of {context}",
                do="Leave the row out, or perplexity",
            )
        rendered.append(made)
    return rendered


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Row numbers by length, so many together that their padded tokens stay under the limit."""
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda n: lengths[n]):
        if not batches or lengths[number] * (len(batches[-1]) + 1) > _TOKENS_AT_ONCE:
            batches.append([])
        batches[-1].append(number)
    return batches
