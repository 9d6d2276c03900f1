"""Cross entropy of the labelled tokens only: the output head never sees a position that nobody trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from tunesmith.core.examples import IGNORED
from tunesmith.models.joined import join, key_value_heads, may_join, may_share, shared_tokens
from tunesmith.models.noise import embedding_noise
from tunesmith.models.split import entered, entry_of
from tunesmith.models.virtual import embedded, leading_logits, with_places
from tunesmith.models.whole import trained_part
from tunesmith.models.wrapped import unwrapped

if TYPE_CHECKING:
    import torch

SHORTEST_SHARED = 8
"""Tokens; a shorter common beginning is not worth the extra attention."""
WIDEST_SHARED = 2048
"""Tokens of a batch's rows; wider ones would pay for the sharing with a mask of their length squared in every layer."""
CHUNK = 256
"""Tokens whose logits exist at the same time under a frozen head; fewer make slower products."""
PIECE = 32
"""Of them, those whose softmax is made at a time on a CPU: their logits in fp32 stay near the core."""
STEP = 32
"""Their number is rounded up to a multiple of it: oneDNN keeps code for every shape it has met (decision 005)."""


def is_worth_sharing(shared: int, width: int) -> bool:
    """Whether a common beginning of rows of `width` tokens is computed once."""
    return shared >= SHORTEST_SHARED and width <= WIDEST_SHARED


def label_losses(
    model: Any, batch: dict[str, torch.Tensor], *, smoothing: float = 0.0, noise: float | None = None
) -> torch.Tensor:
    """Cross entropy of every labelled token, in fp32.

    `batch` holds input_ids, attention_mask and labels, each (B, T), padded on the right; the token at t + 1 is predicted
    from t. With `states` (B, T, D) the layers before layer `entry` (the same in all rows, (B,)) are left out. Returns (B, T - 1) with 0 where there is no label; the sum of a row is its negative log-likelihood in nats.
    `smoothing` is cross_entropy's label_smoothing, `noise` NEFTune's alpha (noise.py).
    """
    import torch
    from torch.nn.functional import pad

    from tunesmith.models.attention import take_over_attention

    wrapper, model = model, unwrapped(model)
    head = trained_part(model.get_output_embeddings())
    if not may_join(model) or type(head) is not torch.nn.Linear:  # a head with an adapter of its own answers itself
        with embedding_noise(model, noise, batch["attention_mask"]):
            return _padded(wrapper, batch, smoothing)
    whole = with_places(model, batch)
    shared = shared_tokens(whole) if noise is None and may_share(model) else 0
    shared = shared if is_worth_sharing(shared, whole["input_ids"].shape[1]) else 0
    joined = join(whole, shared, key_value_heads(model))
    places = (joined.targets != IGNORED).nonzero().squeeze(1)  # (K,)
    take_over_attention(model)
    with (
        _head_scores(head, joined.targets[places], smoothing),
        embedding_noise(model, noise, pad(batch["attention_mask"], (leading_logits(model), 0)), joined),
        embedded(model, joined.ids, joined.positions) as tokens,
        entered(model, joined.states, entry_of(batch)),
    ):
        found = wrapper(
            **tokens, position_ids=joined.positions, attention_mask=joined.bias, joined=joined, logits_to_keep=places,
            use_cache=False,
        ).logits[0, :, 0]  # fmt: skip
    losses = found.new_zeros(whole["labels"].numel()).index_copy(0, joined.origins[places], found)
    return losses.view_as(whole["labels"])[:, leading_logits(model) : -1]


def _padded(model: Any, batch: dict[str, torch.Tensor], smoothing: float) -> torch.Tensor:
    """The plain way, for families whose attention or logits are not known and for a trained prefix.

    Logits of the columns in which any row has a label.
    """
    from torch.nn.functional import cross_entropy

    targets = batch["labels"][:, 1:]  # (B, T-1)
    columns = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)  # (K,)
    with entered(unwrapped(model), batch.get("states"), entry_of(batch)):
        logits = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False,
            logits_to_keep=columns + leading_logits(unwrapped(model)),
        ).logits  # (B, K, V)  # fmt: skip
    wanted = targets[:, columns]
    found = cross_entropy(
        logits.float().flatten(0, 1), wanted.flatten(),
        ignore_index=IGNORED, reduction="none", label_smoothing=smoothing,
    )  # fmt: skip
    losses = found.new_zeros(targets.shape)
    return losses.index_copy(1, columns, found.view_as(wanted))


@contextmanager
def _head_scores(head: Any, targets: torch.Tensor, smoothing: float) -> Iterator[None]:
    """While it lasts, the output head answers with losses (1, K, 1) in place of logits (1, K, V).

    Inside the model's forward, so that precision and whatever wraps the model stay as they are.
    """
    import torch
    from torch.nn.functional import cross_entropy, linear

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        states = hidden[0]  # (K, D)
        if head.weight.requires_grad or head.bias is not None:
            logits = linear(states, head.weight, head.bias).float()
            losses = cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
        else:
            kind = (
                torch.get_autocast_dtype(states.device.type) if torch.is_autocast_enabled(states.device.type) else None
            )
            losses = _frozen_head_loss().apply(states.to(kind or head.weight.dtype), head.weight, targets, smoothing)
        return losses[None, :, None]

    before = head.__dict__.get("forward")  # whatever spreads a model over devices puts its own there
    head.forward = forward
    try:
        yield
    finally:
        del head.forward
        if before:
            head.forward = before


@cache
def _frozen_head_loss() -> Any:
    """The autograd function; made at first use, since torch is not loaded with this module."""
    import torch
    from torch.nn.functional import pad

    class FrozenHeadLoss(torch.autograd.Function):
        """Cross entropy under a head without gradient, CHUNK tokens at a time.

        The gradient with respect to the states, (softmax(W h) - target) W, is made in forward: logits never outlive their
        chunk. The target is one at the token, or 1 - smoothing there and smoothing / V everywhere. What goes into the
        product is e - sum(e) target, with e = exp(logit - largest), and the sum is divided out of its small result.
        """

        @staticmethod
        def forward(
            ctx: Any, states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, smoothing: float
        ) -> torch.Tensor:
            weight, real = weight.to(states.dtype), len(states)
            states, targets = pad(states, (0, 0, 0, -real % STEP)), pad(targets, (0, -real % STEP))
            losses = torch.empty(len(states), device=states.device)
            sums = losses.new_empty(len(states), 1)
            gradient = torch.empty_like(states) if ctx.needs_input_grad[0] else None
            piece = PIECE if states.device.type == "cpu" else CHUNK
            for start in range(0, len(states), CHUNK):
                here = slice(start, start + CHUNK)
                logits = states[here] @ weight.T  # (chunk, V)
                for own, wanted, loss, total in zip(
                    *(of.split(piece) for of in (logits, targets[here, None], losses[here], sums[here])), strict=True
                ):
                    exponents = own.float()  # the very same numbers where they are fp32
                    exponents.sub_(exponents.amax(1, keepdim=True))
                    found = (1 - smoothing) * exponents.gather(1, wanted)
                    if smoothing:
                        found += smoothing * exponents.mean(dim=1, keepdim=True)
                    torch.sum(exponents.exp_(), 1, keepdim=True, out=total)
                    loss.copy_((total.log() - found)[:, 0])
                    if gradient is not None:
                        exponents.scatter_add_(1, wanted, total * (smoothing - 1))
                        if smoothing:
                            exponents.sub_(total * (smoothing / weight.shape[0]))
                        own.copy_(exponents)
                if gradient is not None:
                    gradient[here] = (logits @ weight) / sums[here]
            ctx.save_for_backward(None if gradient is None else gradient[:real])
            return losses[:real]

        @staticmethod
        def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
            (gradient,) = ctx.saved_tensors
            return gradient * outer[0][:, None].to(gradient.dtype), None, None, None

    return FrozenHeadLoss
