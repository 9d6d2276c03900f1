"""Every optimizer: the library's own step, learning, exact resume, and no option that is accepted and ignored."""

from __future__ import annotations

import importlib.util
import json
from typing import get_args

import pytest
import torch

from tests.runs import goes_on_after, losses
from tunesmith import cli
from tunesmith.core.config import load, options
from tunesmith.core.errors import MissingExtra, UsageError
from tunesmith.training import optimizer as module
from tunesmith.training.optimizer import OptimizerConfig, check_optimizer, make_optimizer, set_rate

KINDS = get_args(OptimizerConfig.model_fields["kind"].annotation)
HERE = [kind for kind in KINDS if kind != "paged_adamw_8bit"]  # pages need a GPU
needs_bitsandbytes = pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="the extra qlora")
EVERY = [pytest.param(kind, marks=needs_bitsandbytes if "8bit" in kind else ()) for kind in HERE]


class Small(torch.nn.Module):
    """An embedding, a matrix large enough for eight bits, a bias, a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(20, 64)
        self.inner = torch.nn.Linear(64, 96)
        self.head = torch.nn.Linear(96, 20, bias=False)

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(self.embed(ids)).tanh())


def walk(model: Small, optimizers, steps: int = 4) -> dict[str, torch.Tensor]:
    """The weights after some steps on the same batches."""
    for step in range(steps):
        torch.manual_seed(step)
        ids = torch.randint(0, 20, (2, 8))
        torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def library_steps(kind: str, model: Small) -> list[torch.optim.Optimizer]:
    """The optimizers that a person would build by hand."""
    rate, decay = 1e-2, 0.1
    if kind == "adamw":
        return [torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)]
    if kind == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return [AdamW8bit(model.parameters(), lr=rate, weight_decay=decay)]
    if kind == "adafactor":
        from transformers.optimization import Adafactor

        flags = {"scale_parameter": False, "relative_step": False, "warmup_init": False}  # transformers' Trainer
        return [Adafactor(model.parameters(), lr=rate, weight_decay=decay, **flags)]
    rest = [model.embed.weight, model.inner.bias, model.head.weight]
    return [
        torch.optim.Muon([model.inner.weight], lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, weight_decay=decay),
    ]


@pytest.mark.parametrize("kind", EVERY)
def test_the_steps_are_the_librarys(kind):
    ours, theirs, untouched = Small(), Small(), Small()
    wish = OptimizerConfig(kind=kind, learning_rate=1e-2, weight_decay=0.1)
    optimizer = make_optimizer(ours, wish, lambda name: 1.0)
    set_rate(optimizer, 1e-2)
    after, wanted = walk(ours, [optimizer]), walk(theirs, library_steps(kind, theirs))
    for name, weight in wanted.items():
        assert torch.allclose(after[name], weight, atol=1e-6), name
        assert not torch.allclose(weight, dict(untouched.named_parameters())[name], atol=1e-4)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_resumed_run_has_the_losses_it_would_have_had(train, tmp_path, kind, method):
    wishes = {
        "optimizer__kind": kind, "method__kind": method, "save__every_steps": 2, "evaluation__every_steps": 50,
        "optimizer__learning_rate": 0.005,
        **({"method__dropout": 0.2, "method__rank": 64} if method == "lora" else {}),  # 64 x 64: eight bits
    }  # fmt: skip
    whole = goes_on_after(7, train, tmp_path, wishes)
    assert whole.held_out_loss < whole.base_held_out_loss - 0.03


@needs_bitsandbytes
def test_eight_bits_are_saved_as_eight_bits(train, tmp_path):
    from safetensors.torch import load_file

    made = train(tmp_path / "run", optimizer__kind="adamw_8bit", optimizer__steps=1, method__rank=64)
    saved = load_file(made.checkpoint / "state" / "optimizer.safetensors")
    moments = {name: value for name, value in saved.items() if name.endswith((".state1", ".state2"))}
    assert {value.dtype for value in moments.values() if value.numel() >= 4096} == {torch.uint8}
    assert any(value.numel() >= 4096 for value in moments.values())


def test_muon_takes_the_matrices_inside_the_layers(tiny_model):
    from tunesmith.models.load import find, load_model

    model = load_model(find(str(tiny_model)))
    optimizer = make_optimizer(
        model, OptimizerConfig(kind="muon", learning_rate=0.1), lambda name: 2.0 if "mlp" in name else 1.0
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    muon, plain = optimizer.parts
    inside = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert len(inside) == 2 * 7
    assert all(".layers." in name and "proj" in name for name in inside)
    outside = {names[id(p)] for group in plain.param_groups for p in group["params"]}
    assert inside | outside == set(names.values())
    assert {"model.embed_tokens.weight", "lm_head.weight"} & set(names.values()) <= outside
    set_rate(optimizer, 0.5)
    assert sorted(group["lr"] for group in muon.param_groups) == [0.5, 1.0]


@pytest.mark.parametrize(("option", "value"), [("betas", [0.9, 0.95]), ("epsilon", 1e-6)])
def test_adafactor_takes_no_numbers_of_adam(option, value):
    with pytest.raises(UsageError, match=f"{option}: adafactor has no such number"):
        load(OptimizerConfig, {"kind": "adafactor"}, [(option, value)])
    for kind in HERE:
        if kind != "adafactor":
            assert getattr(load(OptimizerConfig, {"kind": kind}, [(option, value)]), option)


def test_kind_is_a_word_of_the_section():
    found = {option.path: option for option in options(OptimizerConfig)}
    assert found["kind"].type == " | ".join(KINDS)
    assert found["betas"].kind == ""
    with pytest.raises(UsageError, match="kind: must be one of adamw, .*Did you mean 'adafactor'"):
        load(OptimizerConfig, {"kind": "adafaktor"})


def test_pages_need_a_gpu(tmp_path, tiny_model, rows_file, capsys):
    words = ["train", str(rows_file), "--model", str(tiny_model), "--optimizer.kind", "paged_adamw_8bit"]
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert cli.main([*words, "--out", str(tmp_path / "run")]) == UsageError.exit_code
    said = capsys.readouterr().err
    assert said.startswith("optimizer.kind: paged_adamw_8bit moves its state between GPU and CPU memory")
    assert not (tmp_path / "run").exists()


def test_a_missing_library_is_named_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"adamw_8bit needs bitsandbytes.*tunesmith\[qlora\]"):
        check_optimizer(OptimizerConfig(kind="adamw_8bit"), "cpu")


def test_smoothing_and_noise_are_of_training_only(train, tmp_path):
    plain = train(tmp_path / "plain", optimizer__steps=3)
    other = train(tmp_path / "other", optimizer__steps=3, objective={"label_smoothing": 0.1, "neftune_alpha": 5})
    assert other.base_held_out_loss == plain.base_held_out_loss
    first = [losses(tmp_path / name)[0] for name in ("plain", "other")]
    assert abs(first[0] - first[1]) > 1e-3
    resolved = json.loads((tmp_path / "other" / "lock.json").read_text(encoding="utf-8"))["config"]["objective"]
    assert resolved == {"kind": "sft", "label_smoothing": 0.1, "neftune_alpha": 5.0}
