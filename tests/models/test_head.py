"""Losses of labelled tokens, and their gradients, equal those of the whole logits of the padded batch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy

from decoders import losses_and_gradients, random_model, some_rows
from tunesmith.models import head, joined
from tunesmith.models.head import label_losses
from tunesmith.models.load import find, load_model
from tunesmith.models.methods import Full, Lora

JOINED = 104
"""Tokens of some_rows() in one sequence: 16 shared, three rows of 24 and one of 14, in steps of 8."""


def whole_losses(model, batch, smoothing: float = 0.0) -> torch.Tensor:
    """(B, T-1), by all logits of the padded batch."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    return cross_entropy(
        logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:],
        reduction="none", ignore_index=-100, label_smoothing=smoothing,
    )  # fmt: skip


def same(model, batch, smoothing: float = 0.0) -> None:
    ours = losses_and_gradients(model, batch, partial(label_losses, smoothing=smoothing))
    plain = losses_and_gradients(model, batch, partial(whole_losses, smoothing=smoothing))
    assert torch.allclose(ours[0], plain[0], atol=2e-5)
    assert torch.allclose(ours[1], plain[1], atol=2e-5 * float(plain[1].abs().max()))


@pytest.mark.parametrize("method", [Full(), Lora(rank=4)], ids=["full", "lora"])
@pytest.mark.parametrize("family", [*joined.FAMILIES, "gpt2", "gemma2"])
def test_every_family(family, method):
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4} if family == "gpt2" else {}
    model = method.put(random_model(family, **shape))
    if method.kind == "lora":
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.2)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    same(model, some_rows())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", [Full(), Lora(rank=4)], ids=["full", "lora"])
def test_smoothed_labels_are_torchs(family, method):
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4} if family == "gpt2" else {}
    model = method.put(random_model(family, **shape)).eval()
    same(model, some_rows(), smoothing=0.2)
    plain, smooth = (label_losses(model, some_rows(), smoothing=share).sum().item() for share in (0.0, 0.2))
    assert abs(plain - smooth) > 0.1


def test_recomputed_activations_give_the_same_gradients():
    model = random_model("llama").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    same(model, some_rows())


def test_the_model_answers_as_before_when_it_is_asked_without_joined_rows():
    model, batch = random_model("llama").eval(), some_rows()
    before = model(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits
    label_losses(model, batch)
    after = model(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits
    assert torch.equal(before, after)
    assert "forward" not in vars(model.get_output_embeddings())


def watch(model) -> dict[str, list[tuple[int, ...]]]:
    seen = {"model": [], "head": []}
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen["model"].append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: seen["head"].append(tuple(inputs[0].shape[:2]))
    )
    return seen


def test_the_shared_beginning_goes_through_once_and_the_head_sees_labelled_tokens_only():
    model, batch = random_model("llama").train(), some_rows()
    seen = watch(model)
    label_losses(model, batch)
    assert seen == {"model": [(1, JOINED)], "head": [(1, int((batch["labels"] != -100).sum()))]}


def test_nothing_is_shared_while_dropout_is_drawn(tiny_model):
    model = Lora(dropout=0.1).put(load_model(find(str(tiny_model))))
    seen = watch(model)
    label_losses(model.train(), some_rows())
    label_losses(model.eval(), some_rows())
    assert seen["model"] == [(1, 152), (1, JOINED)]  # 3 * 40 + 30, in steps of 8


def test_an_adapter_on_the_output_head_is_heard():
    model = Lora(rank=4, targets=("lm_head", "q_proj")).put(random_model("llama"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    same(model.train(), some_rows())


def test_under_a_frozen_head_logits_exist_for_one_chunk_only(monkeypatch):
    monkeypatch.setattr(head, "CHUNK", 7)
    monkeypatch.setattr(head, "PIECE", 3)
    model = random_model("llama").train()
    model.get_output_embeddings().weight.requires_grad = False
    same(model, some_rows())


def test_what_is_shared_ends_before_labels_padding_and_the_last_common_token():
    batch = some_rows()
    assert joined.shared_tokens(batch) == 16
    batch["labels"][1, 9] = 5
    assert joined.shared_tokens(batch) == 8
    batch["attention_mask"][0, 4] = 0
    assert joined.shared_tokens(batch) == 3
    assert joined.shared_tokens({name: value[:1] for name, value in batch.items()}) == 0


def test_rows_of_like_length_are_attended_to_together_with_little_padding():
    assert joined.grouped([10, 10, 11, 30]) == ((3, 11), (1, 30))
    lengths = sorted(1 + (n * n) % 97 for n in range(64))
    groups = joined.grouped(lengths)
    places = [width for count, width in groups for _ in range(count)]
    assert len(places) == 64
    assert all(length <= place for length, place in zip(lengths, places, strict=True))
    assert sum(lengths) <= sum(places) <= (1 + joined.LITTLE_PADDING) * sum(lengths)
    assert len(groups) < 20


def test_what_stands_in_the_sequence_comes_from_its_place_and_goes_back_to_it():
    batch = some_rows()
    made = joined.join(batch, 16, 2)
    assert [(group.rows, group.width, group.keys) for group in made.groups] == [(1, 16, 16), (1, 14, 30), (3, 24, 40)]
    ids, real = batch["input_ids"].flatten(), batch["attention_mask"].bool()
    filled = 16 + 14 + 3 * 24
    assert made.ids.shape == (1, filled + -filled % joined.LENGTH_STEP)
    assert torch.equal(made.ids[0, :filled], ids[made.origins[:filled]])
    back = made.apart(made.ids[0])
    assert torch.equal(back[real[:, 16:]], batch["input_ids"][:, 16:][real[:, 16:]])


def test_long_rows_make_no_square_of_their_length(monkeypatch):
    batch = some_rows(2, width=240)
    assert joined.join(batch, 0, 2).bias.numel() <= joined.SMALL_SCORES
    assert joined.join(batch, 16, 2).bias.shape == (1, 1, 240, 240)
    model = random_model("llama").train()
    seen = watch(model)
    same(model, batch)
    monkeypatch.setattr(head, "WIDEST_SHARED", 239)
    same(model, batch)
    ours = [shape for shape in seen["model"] if shape[0] == 1]
    assert ours == [(1, 256), (1, 272)]  # 16 + 240 - 16 + 30 - 16 tokens and 240 + 30, in steps of 8
