"""Attention of joined rows against torch's of every row alone, with gradients."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tunesmith.data.batch import BatchConfig, order_steps
from tunesmith.models import attention, joined
from tunesmith.models.attention import RowAttention, by_kernel

HEADS, SCALE = 6, 0.25
LENGTHS = [5, 9, 9, 12]


def some_rows(lengths: list[int], shared: int, heads: int, dtype: torch.dtype):
    """The joined batch of rows of these lengths, and their queries (N G, 6 / G * 16), keys and values (N G, 16)."""
    torch.manual_seed(0)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(3, 99, mask.shape)
    made = joined.join({"input_ids": ids, "labels": ids, "attention_mask": mask.long()}, shared, heads)
    pieces = made.ids.shape[1] * heads
    shapes = (pieces, HEADS // heads * 16), (pieces, 16), (pieces, 16)
    return made, [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


def one_by_one(given: list[torch.Tensor], lengths: list[int], shared: int, heads: int) -> torch.Tensor:
    """Every row by itself: the shared beginning and its own tokens, the shortest row first, through torch."""
    q, k, v = (part.view(len(part) // heads, -1, 16).transpose(0, 1) for part in given)  # (heads, N, 16)
    made, start = [], shared
    for own in sorted(length - shared for length in lengths):
        tokens = [*range(shared), *range(start, start + own)]
        row = [part[None, :, tokens] for part in (q, k, v)]
        found = scaled_dot_product_attention(*row, is_causal=True, scale=SCALE, enable_gqa=True)[0]
        made += [found] if shared and start == shared else [found[:, shared:]]
        start += own
    return torch.cat(made, dim=1).transpose(0, 1).reshape(-1, given[0].shape[1])


def plainly(given: list[torch.Tensor], made: joined.Joined) -> torch.Tensor:
    return RowAttention.apply(*given, SCALE, made)


def by_torchs_kernel(given: list[torch.Tensor], made: joined.Joined) -> torch.Tensor:
    return by_kernel(*given, SCALE, made, 0.0)


def by_torchs_kernel_of_a_gpu(given: list[torch.Tensor], made: joined.Joined) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "MASK_AND_GROUPS", set())
        return by_torchs_kernel(given, made)


@pytest.mark.parametrize("way", [plainly, by_torchs_kernel, by_torchs_kernel_of_a_gpu])
@pytest.mark.parametrize("block", [3, 4, 200], ids=lambda block: f"{block} at once")
@pytest.mark.parametrize("shared", [0, 3])
@pytest.mark.parametrize("heads", [1, 2, 6])
def test_rows_see_what_they_would_see_alone(monkeypatch, way, block, shared, heads):
    monkeypatch.setattr(joined, "SMALL_SCORES", block * block)
    monkeypatch.setattr(joined, "QUERIES_AT_ONCE", block)
    monkeypatch.setattr(joined, "LITTLE_PADDING", 0.3)
    made, given = some_rows(LENGTHS, shared, heads, torch.float64)
    assert any(group.past is not None for group in made.groups)
    ours, alone = way(given, made), one_by_one(given, LENGTHS, shared, heads)
    assert not ours[len(alone) :].any()
    torch.testing.assert_close(ours[: len(alone)], alone)
    outer = torch.randn_like(ours)
    wanted = torch.autograd.grad(alone, given, outer[: len(alone)])
    torch.testing.assert_close(torch.autograd.grad(ours, given, outer), wanted)


def test_long_rows_in_bf16_are_as_near_to_the_truth_as_through_the_fused_kernel():
    made, exact = some_rows([300, 320], 20, 2, torch.float32)
    assert joined.at_once(280, 300) == joined.QUERIES_AT_ONCE
    outer = torch.randn_like(exact[0])
    wanted = torch.autograd.grad(by_torchs_kernel(exact, made), exact, outer)

    def off(way) -> float:
        given = [part.detach().bfloat16().requires_grad_() for part in exact]
        found = torch.autograd.grad(way(given, made), given, outer.bfloat16())
        return sum(float((own.float() - true).norm() / true.norm()) for own, true in zip(found, wanted, strict=True))

    assert off(plainly) < 1.1 * off(by_torchs_kernel)


def test_nothing_but_tokens_of_rows_stands_in_the_sequences():
    """Of chat-like lengths, 8 rows a step in passes of 1536 tokens, at least 99.5 % full."""
    draw = random.Random(0)
    lengths = [min(512, max(20, round(draw.lognormvariate(5.1, 0.6)))) for _ in range(256)]
    steps = order_steps(lengths, BatchConfig(rows=8, tokens=1536), 0, 0)
    passes = [[lengths[row] for row in rows] for step in steps for rows in step]
    places = [some_rows(each, 0, 1, torch.float32)[0].ids.shape[1] for each in passes]
    assert sum(lengths) >= 0.995 * sum(places)


def test_what_views_are_a_piece_of_is_not_kept():
    made, given = some_rows(LENGTHS, 0, 2, torch.float32)
    width = sum(part.shape[1] for part in given)
    pieces = (
        torch.cat([part.detach() for part in given], dim=1)
        .requires_grad_()
        .split([part.shape[1] for part in given], dim=1)
    )
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        plainly(list(pieces), made)
    assert len(kept) >= 3
    assert all(tensor.untyped_storage().nbytes() < 4 * width * len(given[0]) for tensor in kept)
