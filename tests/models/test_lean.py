"""Lean modules against the ones they stand in for: numbers, gradients, and where they step aside."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.decoders import losses_and_gradients, random_model, some_rows
from tunesmith.models import joined
from tunesmith.models.head import label_losses
from tunesmith.models.lean import AdaptedLinear, RmsNorm, RowAttention, SiluGate, make_lean
from tunesmith.models.methods import Freeze, Full, Lora

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma3_text", "phi3"]
PLACES = {"llama": 14 + 2 + 5, "gemma": 14 + 5, "phi3": 8 + 5}
"""Modules of two layers that compute leanly under LoRA: linears, gated MLPs, norms."""


def pair(family: str, method, dtype: torch.dtype = torch.float32):
    """A model whose adapters and norms do something, and its lean copy."""
    torch.manual_seed(0)
    model = method.put(random_model(family).to(dtype)).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "norm" in name:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    lean = copy.deepcopy(model)
    make_lean(lean)
    return model, lean


def in_bf16(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        return label_losses(model, batch)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", [Lora(rank=4), Full()], ids=["lora", "full"])
def test_losses_and_gradients_are_those_of_the_modules(family, method):
    model, lean = pair(family, method)
    losses, gradients = losses_and_gradients(model, some_rows(), label_losses)
    found, lean_gradients = losses_and_gradients(lean, some_rows(), label_losses)
    torch.testing.assert_close(found, losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lean_gradients, gradients, rtol=1e-3, atol=1e-4 * float(gradients.abs().max()))


@pytest.mark.parametrize("family", sorted(PLACES))
def test_it_takes_every_place_it_knows(family):
    _, lean = pair(family, Lora(rank=4))
    assert sum("forward" in vars(module) for module in lean.modules()) == PLACES[family]


def test_bf16_is_as_near_to_fp32_as_the_modules_are():
    exact, _ = pair("llama", Lora(rank=4))
    model, lean = pair("llama", Lora(rank=4), torch.bfloat16)
    wanted = losses_and_gradients(exact, some_rows(), label_losses)[1]
    plain, leanly = (losses_and_gradients(it, some_rows(), in_bf16)[1] for it in (model, lean))
    assert (leanly - wanted).norm() < 1.1 * (plain - wanted).norm()


def test_an_adapter_that_is_off_merged_or_dropped_out_is_left_to_peft():
    model, lean = pair("llama", Lora(rank=4))
    with torch.no_grad():
        on = label_losses(lean, some_rows())
        with lean.disable_adapter(), model.disable_adapter():
            torch.testing.assert_close(label_losses(lean, some_rows()), label_losses(model, some_rows()))
        lean.merge_adapter()
        torch.testing.assert_close(label_losses(lean, some_rows()), on, rtol=1e-4, atol=1e-4)
        lean.unmerge_adapter()
        torch.testing.assert_close(label_losses(lean, some_rows()), on, rtol=1e-4, atol=1e-4)
    model, lean = pair("llama", Lora(rank=4, dropout=0.5))
    torch.manual_seed(5)
    wanted = label_losses(model, some_rows())
    torch.manual_seed(5)
    torch.testing.assert_close(label_losses(lean, some_rows()), wanted, rtol=1e-4, atol=1e-4)


def test_dora_and_frozen_norms_give_the_gradients_of_the_modules():
    for method in (Lora(rank=4, dora=True), Freeze(layers=1)):
        model, lean = pair("llama", method)
        gradients, found = (losses_and_gradients(it, some_rows(), label_losses)[1] for it in (model, lean))
        torch.testing.assert_close(found, gradients, rtol=1e-3, atol=1e-4 * float(gradients.abs().max()))


def some_attention(queries: int, shared: int, dtype: torch.dtype, groups: int = 2) -> list[torch.Tensor]:
    """q (2, T, 6, 16), k and v (2, shared + T, G, 16)."""
    torch.manual_seed(0)
    shapes = (2, queries, 6, 16), *[(2, shared + queries, groups, 16)] * 2
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


def by_torch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    (queries, keys), turned = (q.shape[1], k.shape[1]), [part.transpose(1, 2) for part in (q, k, v)]
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    return torch.nn.functional.scaled_dot_product_attention(*turned, attn_mask=seen, enable_gqa=True).transpose(1, 2)


@pytest.mark.parametrize("block", [1, 3, 4, 7], ids=lambda block: f"{block} at once")
@pytest.mark.parametrize("shared", [0, 5])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_attention_in_blocks_is_torchs_with_its_gradients(block, shared, groups):
    given = some_attention(7, shared, torch.float64, groups)
    mask = torch.full((7, 7), float("-inf"), dtype=torch.float64).triu(1)
    ours = lambda q, k, v: RowAttention.apply(q, k, v, mask, 0.25, block)  # noqa: E731
    torch.testing.assert_close(ours(*given), by_torch(*given))
    outer = torch.randn_like(given[0])
    found, wanted = (torch.autograd.grad(way(*given), given, outer) for way in (ours, by_torch))
    torch.testing.assert_close(found, wanted)


def test_long_rows_in_bf16_are_as_near_to_fp32_as_those_of_the_fused_kernel():
    assert joined.at_once(300, 320, bf16=True) == joined.QUERIES_AT_ONCE
    exact = some_attention(300, 20, torch.float32)
    given = [part.detach().bfloat16().requires_grad_() for part in exact]
    bias = torch.full((320, 320), float("-inf")).triu(1)
    outer = torch.randn_like(exact[0])
    wanted = torch.autograd.grad(by_torch(*exact), exact, outer)

    def off(way) -> list[float]:
        found = torch.autograd.grad(way(*given), given, outer.bfloat16())
        return [float((own.float() - true).norm() / true.norm()) for own, true in zip(found, wanted, strict=True)]

    ours, theirs = off(lambda q, k, v: joined.attend(q, k, v, bias, 0.25, 0.0)), off(by_torch)
    assert sum(ours) < 1.1 * sum(theirs)


def test_gradients_against_finite_differences():
    def some(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))

    wanting = [some(3, 5).requires_grad_(), some(2, 5).requires_grad_(), some(4, 2).requires_grad_()]
    weight, bias = some(4, 5), some(4)

    def adapted(states, down, up):
        return AdaptedLinear.apply(states, weight, bias, down, up, 0.5).double()

    # the parts' gradients are made in fp32, so that a difference of 1e-2 is the smallest that shows
    assert torch.autograd.gradcheck(adapted, wanting, eps=1e-2, atol=1e-4, rtol=1e-3)
    gate, up = some(3, 7).requires_grad_(), (some(3, 7) + 1).requires_grad_()
    assert torch.autograd.gradcheck(SiluGate.apply, (gate, up))
    for is_gemma in (False, True):
        norm = lambda x, w, g=is_gemma: RmsNorm.apply(x, w, 1e-6, g).double()  # noqa: E731
        inputs = (some(3, 5).requires_grad_(), some(5).requires_grad_())
        assert torch.autograd.gradcheck(norm, inputs, eps=1e-2, atol=1e-2, rtol=1e-2)
