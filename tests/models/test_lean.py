"""Lean modules against the ones they stand in for: numbers, gradients, and where they step aside."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.decoders import losses_and_gradients, random_model, some_rows
from tunesmith.models.head import label_losses
from tunesmith.models.lean import AdaptedLinear, RmsNorm, SiluGate, make_lean
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
