"""Rows of different lengths decoded together: one step, one token each; rows come and go between steps.

The cache is left-padded: `mask` (B, T) tells tokens from padding, every row counts its own positions from 0 (its virtual
tokens, where the model has some, first), so a row's logits are those it would have alone (up to the rounding of another
batch size). Knows no text and no threads.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tunesmith.core.errors import ModelError
from tunesmith.engines.contract import Sampling
from tunesmith.models.virtual import opened

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFILL_TOKENS = 128  # prompt tokens between two decode steps: the longest wait for others, and for noticing a cancel


@dataclass(eq=False)
class Row:
    """One answer in the making. Setting `is_over` from any thread takes it out before the next step."""

    sampling: Sampling
    prompt: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    """Tokens chosen so far."""
    is_over: bool = False
    cache: Any = None
    """Keys and values of the prompt, until the row joins the others."""
    filled: int = 0
    """Prompt tokens in the cache."""
    generator: torch.Generator | None = None


class Batch:
    """The rows that are answered now, and the prompts that are read for the next ones."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._opened = opened(model.eval())
        self._model, self._device = self._opened.model, model.device
        layers = DynamicCache(config=model.config).layers
        odd = {type(layer).__name__ for layer in layers if type(layer) not in {DynamicLayer, DynamicSlidingWindowLayer}}
        if odd:
            raise ModelError(
                str(model.config.name_or_path), "keeps a state that cannot be batched here",
                got=", ".join(sorted(odd)), do="Export it to GGUF and use llama_cpp",
            )  # fmt: skip
        self.clear()

    def clear(self) -> None:
        """Forget all rows."""
        self._rows: list[Row] = []
        self._filling: deque[Row] = deque()
        self._cache: Any = DynamicCache()
        self._mask = torch.ones(0, 0, dtype=torch.long, device=self._device)  # (B, T)

    @property
    def rows(self) -> list[Row]:
        """All rows that are held, those whose prompt is being read last."""
        return [*self._rows, *self._filling]

    def add(self, row: Row) -> None:
        """Let a row in; its prompt is read by the next steps."""
        if row.sampling.temperature > 0:
            row.generator = torch.Generator()
            seed = row.sampling.seed
            row.generator.seed() if seed is None else row.generator.manual_seed(seed)
        # Plain layers also for sliding windows: the mask keeps the window, and plain layers can be padded and joined.
        row.cache = self._opened.cache()
        self._filling.append(row)

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Take out what is over, decode a token for every row, read some prompt. Returns rows with a new last token."""
        self._leave()
        return [*self._decode(), *self._prefill()]

    def _decode(self) -> list[Row]:
        rows = list(self._rows)
        if not rows:
            return []
        self._mask = functional.pad(self._mask, (0, 1), value=1)
        last = torch.tensor([[row.ids[-1]] for row in rows], device=self._device)  # (B, 1)
        positions = self._mask.sum(1, keepdim=True) - 1
        logits = self._forward(last, positions, self._cache, self._mask)
        greedy = logits.argmax(-1).tolist()
        for row, scores, best in zip(rows, logits, greedy, strict=True):
            row.ids.append(best if row.generator is None else _draw(scores, row))
        return rows

    def _prefill(self) -> list[Row]:
        ready: list[Row] = []
        budget = PREFILL_TOKENS
        while self._filling and budget > 0:
            row = self._filling[0]
            chunk = row.prompt[row.filled : row.filled + budget]
            first = self._opened.tokens + row.filled
            positions = torch.arange(first, first + len(chunk), device=self._device)[None]
            logits = self._forward(torch.tensor([chunk], device=self._device), positions, row.cache, None)
            row.filled += len(chunk)
            budget -= len(chunk)
            if row.filled == len(row.prompt):
                row.ids.append(int(logits[0].argmax()) if row.generator is None else _draw(logits[0], row))
                self._join(self._filling.popleft())
                ready.append(row)
        return ready

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, cache: Any, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Logits of the last position, fp32, (B, V)."""
        output = self._model(
            input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1
        )  # fmt: skip
        return output.logits[:, -1].float().cpu()

    def _join(self, row: Row) -> None:
        """Put a row whose prompt is read beside the others, padding the shorter cache on the left."""
        length = self._opened.tokens + len(row.prompt)
        new = torch.ones(1, length, dtype=torch.long, device=self._device)
        if self._rows:
            length = max(self._mask.shape[1], length)
            for own, other in zip(self._cache.layers, row.cache.layers, strict=True):
                own.keys = torch.cat([_pad(own.keys, length), _pad(other.keys, length)])
                own.values = torch.cat([_pad(own.values, length), _pad(other.values, length)])
            self._mask = torch.cat([functional.pad(part, (length - part.shape[1], 0)) for part in (self._mask, new)])
        else:
            self._cache, self._mask = row.cache, new
        row.cache = None
        self._rows.append(row)

    def _leave(self) -> None:
        """Take out rows that are over and the columns that were only theirs."""
        over = {id(row) for row in self.rows if row.is_over}
        if not over:
            return
        self._filling = deque(row for row in self._filling if id(row) not in over)
        kept = [index for index, row in enumerate(self._rows) if id(row) not in over]
        self._rows = [self._rows[index] for index in kept]
        self._mask = self._mask[kept]
        if not kept:
            self._cache, self._mask = DynamicCache(), self._mask[:, :0]
            return
        unused = int(self._mask.argmax(1).min())  # padding columns before the longest row
        self._mask = self._mask[:, unused:]
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[kept, :, unused:], layer.values[kept, :, unused:]


def _pad(states: Any, length: int) -> torch.Tensor:
    """Keys or values (B, H, T, D) with zeros on the left, up to `length` columns."""
    return functional.pad(states, (0, 0, length - states.shape[2], 0))


def _draw(scores: torch.Tensor, row: Row) -> int:
    """Draw a token from the temperature-scaled scores (V,), within the smallest set that holds `top_p` (nucleus)."""
    chances = torch.softmax((scores - scores.max()) / row.sampling.temperature, -1)
    if chances[0].isnan():  # then all are
        raise ModelError("model", "cannot answer: its logits are no numbers", do="Look whether its training diverged")
    ordered, tokens = chances.sort(descending=True)
    before = ordered.cumsum(-1) - ordered
    ordered[before >= row.sampling.top_p] = 0.0  # the first token stays whatever top_p is
    ordered[0] = chances.max()
    return int(tokens[torch.multinomial(ordered, 1, generator=row.generator)])
