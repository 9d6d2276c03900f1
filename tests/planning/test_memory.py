"""Plans against sums by hand, and how the parts answer to the wish."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.artifacts import MemoryPlan
from tunesmith.core.errors import UsageError
from tunesmith.core.hardware import Machine
from tunesmith.models.methods.freeze import Freeze
from tunesmith.models.methods.full import Full
from tunesmith.models.methods.lora import Lora
from tunesmith.models.shape import read_shape
from tunesmith.planning.advise import advise
from tunesmith.planning.memory import LIBRARIES_BYTES, VARIED_BYTES, Parts, Wish, plan_memory, predict
from tunesmith.planning.table import compare_lines, duration, gib, plan_lines

GIB = 2**30
MACHINE = Machine(cores=2, memory_bytes=16 * GIB, available_bytes=12 * GIB)
SHAPE = read_shape({
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
})  # fmt: skip
P = 134_515_008
WISH = Wish(model="small", method=Full(), precision="fp32", rows=4, tokens=256, labelled=512, checkpointing=False)


def test_full_tuning_in_fp32_by_hand():
    parts = predict(SHAPE, WISH, MACHINE)
    assert parts.weights_bytes == 4 * P
    assert parts.gradients_bytes == 4 * P
    assert parts.optimizer_bytes == 8 * P
    assert parts.logits_bytes == 12 * 512 * 49152
    # numbers a token and layer: norms 2 h + 2, inputs 2 h + q + i, middle 2 i, attention q + 2 k
    layer = 4 * 4 * 256 * (2 * 576 + 2 + 3 * 576 + 1536 + 2 * 1536 + 576 + 2 * 192)
    assert parts.activations_bytes == 30 * layer + 2 * 4 * 256 * 576 * 4


def test_sixteen_bytes_a_trained_parameter_in_both_precisions():
    for precision in ("fp32", "bf16"):
        parts = predict(SHAPE, replace(WISH, precision=precision), MACHINE)
        assert parts.weights_bytes + parts.gradients_bytes + parts.optimizer_bytes == 16 * P


def test_optimizers_keep_what_was_measured():
    """benchmarks/results/optimizers.json has the bytes of real states on this very shape."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "optimizers.json"
    for kind, found in json.loads(path.read_text(encoding="utf-8"))["optimizers"].items():
        planned = predict(SHAPE, replace(WISH, optimizer=kind), MACHINE).optimizer_bytes / P
        assert planned == pytest.approx(found["bytes_a_parameter"], abs=0.003), kind
    lora = predict(SHAPE, replace(WISH, method=Lora(rank=8), optimizer="adafactor"), MACHINE)
    assert lora.optimizer_bytes == pytest.approx(lora.gradients_bytes * (1 / 8 + 1 / 576), abs=1)


def test_lora_freezes_the_base():
    adapters = 4_884_480
    for precision, each in (("fp32", 4), ("bf16", 2)):
        parts = predict(SHAPE, replace(WISH, method=Lora(), precision=precision), MACHINE)
        assert parts.weights_bytes == each * P + 4 * adapters
        assert parts.gradients_bytes + parts.optimizer_bytes == 12 * adapters


def test_a_torch_for_cuda_holds_more_where_no_gpu_takes_its_place():
    def planned(**machine: Any) -> int:
        return predict(SHAPE, WISH, replace(MACHINE, **machine)).total_bytes

    assert planned(cuda_build=True) > planned() + GIB / 4
    assert planned(gpu_name="Test GPU", cuda_build=True) == planned(gpu_name="Test GPU")


def test_the_parts_are_never_all_held_at_once():
    parts = predict(SHAPE, WISH, MACHINE)
    assert 0 < parts.overlap_bytes < parts.gradients_bytes + parts.activations_bytes + parts.logits_bytes
    held = (parts.weights_bytes, parts.gradients_bytes, parts.optimizer_bytes, parts.activations_bytes)
    assert parts.total_bytes == sum(held) + parts.logits_bytes + parts.overhead_bytes - parts.overlap_bytes


def test_accumulated_gradients_live_through_the_forward_pass():
    once, often = predict(SHAPE, WISH, MACHINE), predict(SHAPE, replace(WISH, accumulate=2), MACHINE)
    assert often.total_bytes - once.total_bytes == once.gradients_bytes


@pytest.mark.parametrize(
    "change",
    [{"rows": 8}, {"tokens": 512}, {"labelled": 1024}, {"accumulate": 4}, {"method": Lora(), "precision": "fp32", "rows": 64}],
)  # fmt: skip
def test_more_takes_more(change):
    assert predict(SHAPE, replace(WISH, **change), MACHINE).total_bytes > predict(SHAPE, WISH, MACHINE).total_bytes


SHORT = replace(WISH, rows=1, tokens=64, labelled=64)


def test_recomputing_takes_less():
    for method in (Full(), Lora()):
        wish = replace(WISH, method=method)
        assert (
            predict(SHAPE, replace(wish, checkpointing=True), MACHINE).total_bytes
            < predict(SHAPE, wish, MACHINE).total_bytes
        )


def test_adapters_take_less_where_weights_weigh_most():
    """With long rows in fp32 on a CPU they do not: benchmarks/results/memory.json has lora above full at 4 x 256."""
    assert (
        predict(SHAPE, replace(SHORT, method=Lora()), MACHINE).total_bytes
        < predict(SHAPE, SHORT, MACHINE).total_bytes / 2
    )


def test_rows_of_their_own_lengths_scatter_where_bf16_layers_train_nothing():
    """Decision 005. In fp32, and for methods that train every layer, known lengths take no more than unknown ones."""

    def more(**wish: Any) -> int:
        unknown = replace(WISH, **{"precision": "bf16", "method": Freeze(layers=4), **wish})
        known = replace(unknown, lengths=(256,) * 4)
        return predict(SHAPE, known, MACHINE).total_bytes - predict(SHAPE, unknown, MACHINE).total_bytes

    assert more() == VARIED_BYTES
    assert more(precision="fp32") == more(method=Full()) == more(method=Lora()) == 0


def test_without_labels_all_positions_count():
    assert predict(SHAPE, replace(WISH, labelled=None), MACHINE) == predict(
        SHAPE, replace(WISH, labelled=4 * 256), MACHINE
    )


def test_auto_recomputes_only_where_it_must():
    wish = replace(WISH, checkpointing="auto")
    plain, recomputed = (predict(SHAPE, replace(WISH, checkpointing=it), MACHINE).total_bytes for it in (False, True))
    assert not plan_memory(SHAPE, replace(wish, limit_bytes=plain), MACHINE).checkpointing
    tight = plan_memory(SHAPE, replace(wish, limit_bytes=plain - 1), MACHINE)
    assert tight.checkpointing
    assert tight.fits
    assert tight.total_bytes == recomputed
    assert not tight.advice


def test_the_limit_is_what_is_free_or_what_is_wished():
    assert plan_memory(SHAPE, WISH, MACHINE).available_bytes == 12 * GIB
    assert plan_memory(SHAPE, replace(WISH, limit_bytes=5), MACHINE).available_bytes == 5
    gpu = replace(MACHINE, gpu_name="any", gpu_memory_bytes=24 * GIB, gpu_available_bytes=20 * GIB)
    assert plan_memory(SHAPE, WISH, gpu).available_bytes == 20 * GIB
    assert plan_memory(SHAPE, WISH, gpu).device == "cuda"


def test_unknown_targets_are_refused():
    with pytest.raises(UsageError, match="qproj"):
        plan_memory(SHAPE, replace(WISH, method=Lora(targets=("qproj",))), MACHINE)


def _needs(wish: Wish) -> int:
    return predict(SHAPE, wish, MACHINE).total_bytes


CHECKPOINTED = replace(WISH, checkpointing=True)
SMALLER = replace(CHECKPOINTED, rows=2, accumulate=2, labelled=256)
LADDER = [
    (CHECKPOINTED, "--memory.checkpointing on"),
    (replace(SMALLER, rows=1, accumulate=4, labelled=128, method=Lora(), precision="bf16"), "--method.kind lora"),
]


@pytest.mark.parametrize(("enough_for", "typed"), LADDER)
def test_advice_is_the_first_change_that_fits(enough_for, typed):
    plan = plan_memory(SHAPE, replace(WISH, limit_bytes=_needs(enough_for)), MACHINE)
    assert not plan.fits
    assert typed in plan.advice


def test_advice_keeps_the_rows_of_a_step():
    """A step of 12 is only divided by what divides it, so that the gradient stays the same."""
    asked = []

    def fits(wish):
        asked.append((wish.rows, wish.accumulate, wish.precision, wish.method.kind, wish.tokens))
        return False

    assert advise(replace(CHECKPOINTED, rows=6, accumulate=2, tokens=256), fits) == ""
    assert asked[:4] == [(rows, 12 // rows, "fp32", "full", 256) for rows in (4, 3, 2, 1)]
    assert asked[4:] == [
        (1, 12, "bf16", "full", 256), (1, 12, "bf16", "lora", 256), (1, 12, "bf16", "qlora", 256),
        (1, 12, "bf16", "qlora", 128), (1, 12, "bf16", "qlora", 64),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("enough", "typed"),
    [
        (lambda wish: wish.checkpointing is True, ""),
        (lambda wish: wish.rows == 2, " --batch.rows 2 --batch.accumulate 2"),
        (lambda wish: wish.precision == "bf16", " --batch.rows 1 --batch.accumulate 4 --precision bf16"),
        (
            lambda wish: wish.method.kind == "lora",
            " --batch.rows 1 --batch.accumulate 4 --precision bf16 --method.kind lora",
        ),
        (
            lambda wish: wish.tokens == 128,
            " --batch.rows 1 --batch.accumulate 4 --precision bf16 --method.kind qlora --cutoff 128",
        ),
    ],
)
def test_advice_is_all_that_has_to_be_typed(enough, typed):
    assert advise(WISH, enough) == f"--memory.checkpointing on{typed}"


def test_advice_is_true():
    """Doing what is advised makes it fit."""
    wish = replace(WISH, method=Lora(), rows=8, tokens=1024, labelled=None, limit_bytes=4 * GIB)
    plan = plan_memory(SHAPE, wish, MACHINE)
    assert plan.advice == "--memory.checkpointing on --batch.rows 2 --batch.accumulate 4"
    assert plan_memory(SHAPE, replace(wish, checkpointing=True, rows=2, accumulate=4), MACHINE).fits
    assert not plan_memory(SHAPE, replace(wish, checkpointing=True, rows=4, accumulate=2), MACHINE).fits


def test_where_nothing_helps_nothing_is_advised():
    plan = plan_memory(SHAPE, replace(WISH, limit_bytes=LIBRARIES_BYTES["cpu"]), MACHINE)
    assert not plan.fits
    assert plan.advice == ""
    assert "nothing small makes it fit" in "\n".join(plan_lines(plan))


def test_the_table_names_every_part():
    plan = plan_memory(SHAPE, replace(WISH, reward_bytes=5 << 20), MACHINE)
    text = "\n".join(plan_lines(replace(plan, seconds_per_epoch=200.0, seconds_per_further_epoch=70.0)))
    for field in Parts.__slots__:
        part = field.removesuffix("_bytes")
        assert gib(getattr(plan, field)) in text
        assert part in text or part == "overlap"
    assert "fits 12.00 GiB on cpu" in text
    assert "3 min 20 s" in text
    assert "1 min 10 s" in text
    alike = "\n".join(plan_lines(replace(plan, seconds_per_epoch=200.0, seconds_per_further_epoch=200.0)))
    assert alike.count("3 min 20 s") == 1  # nothing is spared


def test_side_by_side():
    plans: list[MemoryPlan] = [plan_memory(SHAPE, replace(SHORT, method=it), MACHINE) for it in (Lora(), Full())]
    lora, full = compare_lines(plans)
    assert lora.split()[:2] == ["lora", "fp32"]
    assert full.count("█") == 30 > lora.count("█")


@pytest.mark.parametrize(("seconds", "said"), [(4.2, "4.2 s"), (61, "1 min 01 s"), (3600 * 5 + 420, "5 h 07 min")])
def test_durations(seconds, said):
    assert duration(seconds) == said
