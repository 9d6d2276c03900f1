"""A padded batch as one sequence: the beginning that all rows share once, then the rows, without their padding.

Linear layers see every token once; only attention (models/attention.py) knows the rows. Each row attends to the shared
beginning and to itself, so losses and gradients are those of the padded batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.core.examples import IGNORED
from tunesmith.models.virtual import leading_logits, virtual_tokens

if TYPE_CHECKING:
    import torch

FAMILIES = ("gemma", "llama", "mistral", "phi3", "qwen2", "qwen3")
"""Model types whose attention takes our function and whose logits are the output head's product and nothing more."""
SMALL_SIDE = 200
SMALL_SCORES = SMALL_SIDE * SMALL_SIDE
"""Scores of a row and head up to which a CPU makes all at once, and keeps their softmax."""
QUERIES_AT_ONCE = 128
"""Of a row with more scores (decision 008)."""

LENGTH_STEP = 8
"""Tokens; sequences are filled up to a multiple of it, so that few shapes come up (decision 005)."""
LITTLE_PADDING = 0.25
"""Share of a group's tokens up to which attention computes padding along: more groups cost more (decision 008)."""


@dataclass(frozen=True, slots=True)
class Group:
    """B rows of like length whose attention is computed together, T places of each over S keys: what is shared, and its own.

    Keys and values have G heads; piece n G + g of the sequence is what token n has for head g.
    """

    rows: int
    width: int
    """T"""
    keys: int
    """S"""
    pieces: slice
    """Where the rows stand in the sequence."""
    queries_at: torch.Tensor
    """(B G T,) the piece at every place, by row, head and place; behind the end of a row its last one."""
    keys_at: torch.Tensor
    """(B G S,) the same of keys."""
    written: torch.Tensor
    """The way back: for every piece of the rows its place among the B G T."""
    past: torch.Tensor | None
    """Places behind the ends of rows; None where there are none."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A batch of B rows and at most T tokens, the first `shared` of them equal in all rows, as a sequence of N tokens."""

    ids: torch.Tensor
    """(1, N)"""
    positions: torch.Tensor
    """(1, N), counted in each row from its first token."""
    targets: torch.Tensor
    """(N,), the token that comes next, IGNORED where it is not trained."""
    bias: torch.Tensor
    """(1, 1, S, S), 0 where a token sees another of its row and -inf elsewhere, for as many tokens as attention reads it:
    long rows that share nothing need only a corner of it, and a square of their length would fill the memory."""
    shared: int
    rows: int
    width: int
    """T - shared"""
    origins: torch.Tensor
    """(N,), the place of each in the padded batch, (B, T) flattened."""
    groups: tuple[Group, ...]
    """The shared beginning, where there is one, and the rows behind it, as they stand in the sequence."""
    places: torch.Tensor
    """(n,) which of B * width places stand in the sequence, in its order."""
    states: torch.Tensor | None = None
    """(1, N, D), what enters the first layer that is computed, where the layers before it are left out."""

    def apart(self, part: torch.Tensor) -> torch.Tensor:
        """The rows behind the shared beginning: (N, ...) -> (B, width, ...), 0 behind the end of a row."""
        own = part[self.shared : self.shared + len(self.places)]
        every = own.new_zeros(self.rows * self.width, *own.shape[1:]).index_copy_(0, self.places, own)
        return every.unflatten(0, (self.rows, self.width))

    def in_line(self, first: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
        """The way back: the shared beginning (shared, ...) and the rows (B, width, ...) -> (N, ...)."""
        return _in_line(first, rest, self.places)


def may_join(model: Any) -> bool:
    """Whether attention of this model is full and ours to compute, with no keys from elsewhere (a trained prefix)."""
    if virtual_tokens(model) != leading_logits(model):
        return False
    config = model.config.get_text_config()
    windows = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    return config.model_type in FAMILIES and not windows and not getattr(config, "sliding_window", None)


def may_share(model: Any) -> bool:
    """Whether one row may stand for all: not while dropout is drawn."""
    import torch

    if not model.training:
        return True
    drawn = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
    return not drawn and not getattr(model.config.get_text_config(), "attention_dropout", 0)


def shared_tokens(batch: dict[str, torch.Tensor]) -> int:
    """Tokens at the beginning that are equal in all rows and end before the first label; 0 for a single row."""
    ids, labels = batch["input_ids"], batch["labels"]
    if len(ids) == 1:
        return 0
    differs = (ids != ids[:1]).any(dim=0) | (batch["attention_mask"] == 0).any(dim=0)
    labelled = (labels != IGNORED).any(dim=0)
    ends = (differs | labelled).nonzero()
    return max(0, int(ends[0]) - 1) if len(ends) else 0


def key_value_heads(model: Any) -> int:
    """Heads of keys and values in a layer of the model."""
    return model.config.get_text_config().num_key_value_heads


def join(batch: dict[str, torch.Tensor], shared: int, heads: int) -> Joined:
    """Put a right-padded batch (input_ids, attention_mask, labels, each (B, T); perhaps states, (B, T, D)) into one sequence.

    The first `shared` tokens are those of all rows; `heads` is that of keys and values. What fills the sequence up stands at its end and has no target.
    """
    import torch

    ids, labels = batch["input_ids"], batch["labels"]
    (rows, width), device = ids.shape, ids.device
    targets = torch.full_like(labels, IGNORED)
    targets[:, :-1] = labels[:, 1:]
    lengths, order = (batch["attention_mask"].sum(1) - shared).sort(stable=True)
    inside = torch.arange(width - shared, device=device)
    places = (order[:, None] * (width - shared) + inside)[inside < lengths[:, None]]
    side = width if shared else min(width, SMALL_SIDE)
    bias = torch.full((side, side), float("-inf"), device=device).triu(1)

    def one_row(every: torch.Tensor) -> torch.Tensor:
        return _in_line(every[0, :shared], every[:, shared:], places)

    states, columns = batch.get("states"), torch.arange(width, device=device)
    no_targets = targets.new_full((shared,), IGNORED)
    return Joined(
        ids=one_row(ids)[None], positions=one_row(columns.expand(rows, -1))[None], bias=bias[None, None], shared=shared,
        targets=_in_line(no_targets, targets[:, shared:], places, IGNORED), rows=rows, width=width - shared,
        origins=one_row(torch.arange(rows * width, device=device).view(rows, width)), groups=_groups(lengths, shared, heads), places=places, states=None if states is None else one_row(states)[None],
    )  # fmt: skip


def _groups(lengths: torch.Tensor, shared: int, heads: int) -> tuple[Group, ...]:
    """The shared beginning, and rows of these lengths (B,), from the shortest on."""
    made = [_group(lengths.new_tensor([shared]), 0, 0, heads)] if shared else []
    start, done = shared, 0
    for count, _ in grouped(lengths.tolist()):
        own = lengths[done : done + count]
        made.append(_group(own, start, shared, heads))
        start, done = start + int(own.sum()), done + count
    return tuple(made)


def _group(lengths: torch.Tensor, start: int, shared: int, heads: int) -> Group:
    """Rows that stand one behind the other from token `start` on."""
    import torch

    inside = torch.arange(int(lengths.max()), device=lengths.device)
    each = torch.arange(heads, device=lengths.device)[:, None]
    real = inside < lengths[:, None]  # (B, T)
    tokens = start + (lengths.cumsum(0) - lengths)[:, None] + inside.minimum(lengths[:, None] - 1)
    own = tokens[:, None] * heads + each  # (B, G, T)
    common = (inside.new_tensor(range(shared)) * heads + each).expand(len(lengths), -1, -1)
    place = torch.arange(own.numel(), device=lengths.device).view_as(own).transpose(1, 2)  # (B, T, G)
    past = place[~real].flatten()
    return Group(
        len(lengths), len(inside), shared + len(inside), slice(start * heads, (start + int(lengths.sum())) * heads), queries_at=own.flatten(),
        keys_at=torch.cat([common, own], dim=2).flatten(), written=place[real].flatten(), past=past if len(past) else None,
    )  # fmt: skip


def grouped(lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Rows in as few groups as keep padding small: (how many, places of each); `lengths` from the shortest on."""
    groups: list[tuple[int, int]] = []
    tokens = 0
    for length in lengths:
        if groups and (groups[-1][0] + 1) * length <= (1 + LITTLE_PADDING) * (tokens + length):
            groups[-1], tokens = (groups[-1][0] + 1, length), tokens + length
        else:
            groups, tokens = [*groups, (1, length)], length
    return tuple(groups)


def at_once(queries: int, keys: int) -> int:
    """Queries of a row whose scores a CPU makes at a time."""
    return queries if queries * keys <= SMALL_SCORES else QUERIES_AT_ONCE


def _in_line(first: torch.Tensor, rest: torch.Tensor, places: torch.Tensor, filler: int = 0) -> torch.Tensor:
    import torch

    own = rest.flatten(0, 1).index_select(0, places)
    tail = own.new_full((-(len(first) + len(own)) % LENGTH_STEP, *own.shape[1:]), filler)
    return torch.cat([first, own, tail])
