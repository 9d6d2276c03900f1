"""The order of rows and the padded tensors."""

from __future__ import annotations

import random

import pytest
import torch

from tunesmith.data.batch import BatchConfig, collate, in_order, order_steps
from tunesmith.data.dataset import Rows, write_split
from tunesmith.data.render import Rendered


def test_every_row_comes_once_and_the_order_is_that_of_seed_and_epoch():
    lengths = [random.Random(n).randint(5, 900) for n in range(203)]
    batch = BatchConfig(rows=4, accumulate=2)
    first = order_steps(lengths, batch, 1, 0)
    assert sorted(row for step in first for numbers in step for row in numbers) == list(range(203))
    assert first == order_steps(lengths, batch, 1, 0)
    assert first != order_steps(lengths, batch, 1, 1)
    assert first != order_steps(lengths, batch, 2, 0)
    assert len(first) == 26
    assert all(len(step) == 2 and all(len(numbers) == 4 for numbers in step) for step in first[:-1])


def test_rows_of_like_length_stand_together():
    lengths = [random.Random(n).randint(5, 900) for n in range(512)]
    full = {}
    for is_grouped in (True, False):
        steps = order_steps(lengths, BatchConfig(rows=8, group_by_length=is_grouped), 1, 0)
        full[is_grouped] = sum(lengths) / sum(
            8 * max(lengths[row] for row in numbers) for step in steps for numbers in step
        )
    assert full[True] > 0.9
    assert 0.5 < full[False] < 0.62  # as rows come
    inside = order_steps(lengths, BatchConfig(rows=8, accumulate=4), 1, 0)
    assert all(step == sorted(step, key=lambda rows: lengths[rows[0]]) for step in inside)


@pytest.mark.parametrize("limit", [60, 300, 1000, 10**6])
def test_passes_keep_to_their_tokens_and_the_rows_of_a_step(limit):
    lengths = [random.Random(3).randint(10, 500) for _ in range(203)]
    whole = order_steps(lengths, BatchConfig(rows=8, accumulate=2, tokens=None), 1, 1)
    cut = order_steps(lengths, BatchConfig(rows=8, accumulate=2, tokens=limit), 1, 1)
    assert [[row for rows in step for row in rows] for step in cut] == [
        [row for rows in step for row in rows] for step in whole
    ]
    assert all(len(rows) == 1 or total(lengths, [rows]) <= limit for step in cut for rows in step)
    fewest = [sum(max(1, -(-total(lengths, [rows]) // limit)) for rows in step) for step in whole]
    assert all(len(step) <= 2 * least for step, least in zip(cut, fewest, strict=True) if limit >= 300)


def test_the_beginning_that_all_rows_share_counts_once_in_a_pass():
    lengths, batch = [310, 320, 330, 340], BatchConfig(rows=4, tokens=400)
    assert order_steps(lengths, batch, 1, 0, shared=300) == [[[0, 1, 2, 3]]]
    assert order_steps([*lengths[:3], 341], batch, 1, 0, shared=300) == [[[0, 1, 2], [3]]]
    assert order_steps(lengths, batch, 1, 0) == [[[0], [1], [2], [3]]]
    assert order_steps(lengths, batch.model_copy(update={"tokens": 200}), 1, 0, shared=300) == [[[0], [1], [2], [3]]]


def test_rows_in_order_are_cut_as_while_training():
    lengths = [340, 20, 310, 25, 330, 30, 320]
    assert in_order(lengths, BatchConfig(rows=4, tokens=None)) == [[1, 3, 5, 2], [6, 4, 0]]
    assert in_order(lengths, BatchConfig(rows=4, tokens=350)) == [[1, 3, 5], [2], [6], [4], [0]]
    assert in_order([300 + n for n in lengths], BatchConfig(rows=3, tokens=400), shared=300)[0] == [1, 3, 5]


@pytest.mark.parametrize("limit", [None, 300])
def test_the_first_step_of_all_has_the_largest_batch(limit):
    for seed in range(5):
        lengths = [random.Random(seed).randint(10, 200) for _ in range(203)]
        lengths[7] = 900
        batch = BatchConfig(rows=4, accumulate=2, tokens=limit)
        first = order_steps(lengths, batch, seed, 0)
        assert 7 in [row for rows in first[0] for row in rows]
        assert sorted(row for step in first for rows in step for row in rows) == list(range(203))
        assert not all(
            7 in [row for rows in order_steps(lengths, batch, seed, epoch)[0] for row in rows] for epoch in (1, 2)
        )


def total(lengths, step):
    return sum(lengths[row] for rows in step for row in rows)


def test_padding_and_labels(tmp_path):
    rows = [Rendered([5, 6, 7], [True, False, True]), Rendered([8, 9], [False, True])]
    write_split(tmp_path, "train", [(row,) for row in rows], [])
    batch = collate(Rows(tmp_path, "train"), [1, 0], pad_token=0)
    assert batch["input_ids"].tolist() == [[8, 9, 0, 0], [5, 6, 7, 0]]  # few widths: multiples of four
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert batch["labels"].tolist() == [
        [-100, 9, -100, -100],
        [-100, -100, 7, -100],
    ]  # the first token has no place to be predicted from
    assert all(value.dtype == torch.int64 for value in batch.values())
