from __future__ import annotations

import pytest
import torch

from tunesmith.exporting.certificate import LARGEST, merged_answers, merged_logits
from tunesmith.exporting.greedy import compare, greedy, record
from tunesmith.exporting.merge import load_exact, merge
from tunesmith.models.load import find

PROMPTS = ([5, 6, 7], list(range(20)), [100])
TIE = 2 * LARGEST


@pytest.fixture(scope="module")
def recorded(adapter):
    model = load_exact(find(str(adapter)))
    return [record(model, ids, {1}, 12) for ids in PROMPTS]


@pytest.fixture
def merged(adapter):
    found = find(str(adapter))
    return merge(load_exact(found), found)


def test_greedy_is_what_transformers_generates(merged):
    ids = torch.tensor([PROMPTS[1]])
    out = merged.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert greedy(merged, PROMPTS[1], set(), 12) == out[0, len(PROMPTS[1]) :].tolist()


def test_greedy_stops_behind_an_end_token(merged):
    free = greedy(merged, PROMPTS[0], set(), 12)
    assert greedy(merged, PROMPTS[0], {free[3]}, 12) == free[: free.index(free[3]) + 1]


def test_recorded_logits_choose_the_answer(recorded):
    for one in recorded:
        assert one.logits.shape[0] == len(one.answer_ids)
        assert one.logits.argmax(-1).tolist() == one.answer_ids


def test_a_true_merge_passes(recorded, merged):
    compared = [compare(merged, one, TIE) for one in recorded]
    logits, answers = merged_logits(compared, "fp32"), merged_answers(compared, "fp32", 0.9)
    assert logits.passed
    assert answers.passed
    assert 0 < logits.measured["largest_difference"] < 1e-4
    assert logits.measured["tokens"] == sum(len(one.answer_ids) for one in recorded)


def test_the_base_without_its_adapter_fails(recorded, base):
    compared = [compare(load_exact(find(str(base))), one, TIE) for one in recorded]
    assert merged_logits(compared, "fp32").passed is False
    answers = merged_answers(compared, "fp32", 0.9)
    assert answers.passed is False
    assert answers.measured["differs_at_token"]


def test_one_damaged_matrix_fails(recorded, merged):
    with torch.no_grad():
        merged.model.layers[1].self_attn.v_proj.weight.mul_(1.01)
    proof = merged_logits([compare(merged, one, TIE) for one in recorded], "fp32")
    assert proof.passed is False
    assert proof.measured["largest_difference"] > LARGEST


def test_bf16_has_its_own_limit(recorded, merged):
    merged.to(torch.bfloat16).to(torch.float32)
    compared = [compare(merged, one, TIE) for one in recorded]
    assert merged_logits(compared, "fp32").passed is False
    assert merged_logits(compared, "bf16").measured["largest_allowed"] is None


def test_a_token_chosen_by_a_hair_is_a_tie(recorded, merged):
    one = recorded[0]
    lead = one.logits[0].topk(2).values.diff().abs().item()
    other = int(one.logits[0].topk(2).indices[1])

    class Other:
        device = merged.device

        def __call__(self, **inputs):
            out = merged(**inputs)
            out.logits[0, len(one.prompt_ids) - 1, other] += lead * 1.01
            return out

    assert compare(Other(), one, tie=lead * 1.1).differs_at is None
    assert compare(Other(), one, tie=lead * 1.1).ties == 1
    assert compare(Other(), one, tie=lead * 0.9).differs_at == 0
