"""Which passes of a run are planned: the largest of those that begin a step and of those that come later in one."""

from __future__ import annotations

import json

import pytest

from tunesmith import verbs
from tunesmith.core.config import load
from tunesmith.core.examples import IGNORED
from tunesmith.data.batch import BatchConfig, collate, order_steps
from tunesmith.data.dataset import Few, Rows
from tunesmith.data.prepare import Split, write_dataset
from tunesmith.data.source import Source
from tunesmith.models import head
from tunesmith.models.joined import shared_tokens
from tunesmith.models.load import find
from tunesmith.models.shape import read_shape
from tunesmith.training import loop
from tunesmith.training.distributed import ALONE, Team
from tunesmith.training.passes import EPOCHS, largest_passes, shared_once

SEED = 42


@pytest.fixture
def prepare(tokenizer, tmp_path):
    """Alpaca rows as the token arrays of a training set."""

    def call(lines):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        source = Source.model_validate({"path": [str(path)]})
        return Rows(write_dataset(source, tokenizer, tmp_path / "made", cutoff=900, split=Split(0, 1)).dataset, "train")

    return call


@pytest.fixture
def rows(prepare):
    return prepare({"instruction": f"Say {'ha ' * n}", "output": "ha " * (n + 1)} for n in range(1, 21))


def passes_of(rows, batch, team):
    """(those that begin a step, the later ones) as lists of row numbers."""
    steps = [step for epoch in range(EPOCHS) for step in order_steps(rows.lengths, team.batch(batch), SEED, epoch)]
    count = team.processes
    return [numbers for step in steps for numbers in step[:count]], [
        numbers for step in steps for numbers in step[count:]
    ]


def logits_of(rows, numbers):
    """Positions for which models/head.py computes logits: the labelled ones."""
    return int((collate(rows, numbers, 0)["labels"][:, 1:] != IGNORED).sum())


@pytest.mark.parametrize("processes", [1, 2])
def test_passes_that_begin_a_step_and_later_ones_are_known_apart(rows, processes):
    """While the later ones run, a process holds gradients."""
    batch, team = BatchConfig(rows=4, tokens=200), Team(0, processes)
    largest = largest_passes(rows, batch, team, SEED)
    for is_later, passes in enumerate(passes_of(rows, batch, team)):
        found = [one for one in largest if (one["accumulate"] > 1) == is_later]
        assert max(sum(one["lengths"]) for one in found) == max(sum(rows.lengths[n] for n in it) for it in passes)
        assert {one["labelled"] for one in found} == {max(logits_of(rows, numbers) for numbers in passes)}
    steps = [s for epoch in range(EPOCHS) for s in order_steps(rows.lengths, team.batch(batch), SEED, epoch)]
    assert max(one["accumulate"] for one in largest) == max(-(-len(step) // processes) for step in steps) > 1


def test_the_beginning_that_all_rows_share_is_known(rows):
    largest = largest_passes(rows, BatchConfig(rows=4), ALONE, SEED)
    assert {one["shared"] for one in largest} == {shared_tokens(collate(rows, range(len(rows)), 0))}
    assert largest[0]["shared"] > 10
    few = Few.these(rows, [18, 19])
    assert few.shared == shared_tokens(collate(few, [0, 1], 0)) > rows.shared


def test_a_pass_of_few_long_rows_is_known_beside_one_of_many_that_share_their_beginning(prepare):
    """Many short rows have more tokens than a few long ones until what a long system message has in all of them counts once."""
    texts = [2] * 16 + [120] * 16
    rows = prepare({"instruction": f"ha {n}", "output": "ha " * n, "system": "be brief " * 20} for n in texts)
    batch = BatchConfig(rows=8, tokens=8 * min(rows.lengths), group_by_length=True)
    largest = largest_passes(rows, batch, ALONE, SEED)
    own = lambda lengths: sum(lengths) - (len(lengths) - 1) * largest[0]["shared"]  # noqa: E731
    differs = []
    for is_later, passes in enumerate(passes_of(rows, batch, ALONE)):
        lengths = [[rows.lengths[number] for number in numbers] for numbers in passes]
        found = [one["lengths"] for one in largest if (one["accumulate"] > 1) == is_later]
        assert max(map(sum, found)) == max(map(sum, lengths))
        assert max(map(own, found)) == max(map(own, lengths))
        differs.append(own(max(lengths, key=sum)) < max(map(own, lengths)))
    assert any(differs)


@pytest.mark.parametrize(
    ("wish", "is_once"),
    [
        ({}, True),
        ({"method.kind": "freeze", "method.layers": 1}, True),
        ({"method.dropout": 0.1}, False),
        ({"method.targets": ["q_proj", "lm_head"]}, False),
        ({"method.kind": "prefix"}, False),
        ({"objective.neftune_alpha": 5}, False),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_what_counts_once_is_what_the_model_computes_once(rows, tiny_model, monkeypatch, wish, is_once):
    document = {"model": str(tiny_model), "dataset": {"path": ["rows.jsonl"]}}
    config = load(verbs.config_class("train"), document, list(wish.items()))
    seen, real = [], head.join
    monkeypatch.setattr(head, "join", lambda whole, shared, heads: seen.append(shared) or real(whole, shared, heads))
    model = config.method.put(config.method.load(find(str(tiny_model)), "fp32")).train()
    config.objective.loss(model, collate(rows, range(len(rows)), 0))
    once = shared_once(config, read_shape(tiny_model), rows)
    assert once == sum(seen)
    assert (once > 0) == is_once


def test_scored_rows_count_their_own_beginning_once(train, tmp_path, monkeypatch):
    path, seen, score = tmp_path / "rows.jsonl", [], loop.held_out_scores
    lines = [{"instruction": f"Say {n}", "output": "ha " * 3, "system": "be brief " * 30} for n in range(24)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(loop, "held_out_scores", lambda *all: seen.append(all[2]) or score(*all))
    wishes = {"dataset__path": [str(path)], "evaluation__share": 0.25, "optimizer__steps": 1, "batch__rows": 6}
    losses = {limit: train(tmp_path / str(limit), batch__tokens=limit, **wishes).held_out_loss for limit in (None, 400)}
    whole, cut = seen[0], seen[len(seen) // 2]
    assert len(whole) < len(cut) < sum(map(len, whole))
    assert losses[400] == pytest.approx(losses[None], rel=1e-5)
