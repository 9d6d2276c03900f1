"""What the monitor writes down, when it ends a run, and what it costs a run to be watched: nothing of its losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.runs import events, losses
from tunesmith.core import files
from tunesmith.core.errors import DiseaseFound
from tunesmith.training import probes
from tunesmith.training.watch import Pulse

UNWATCHED = {"diagnosis__samples": 0, "diagnosis__general": 0}


def test_a_watched_run_has_the_losses_of_an_unwatched_one(train, tmp_path):
    wishes = {"method__dropout": 0.2, "evaluation__every_steps": 5}
    train(tmp_path / "watched", **wishes)
    train(tmp_path / "not", **wishes, **UNWATCHED)
    assert losses(tmp_path / "watched") == losses(tmp_path / "not")


def test_what_is_written_down(train, tmp_path, tiny_model):
    train(tmp_path / "run", evaluation__every_steps=9, optimizer__epochs=2)
    (facts,), steps, found = (events(tmp_path / "run", kind) for kind in ("facts", "step", "probe"))
    assert (facts["rows"], facts["held_out_rows"], facts["steps"], facts["steps_per_epoch"]) == (36, 4, 18, 9)
    assert [probe["step"] for probe in found] == [0, 9, 18]
    assert len({step["order"] for step in steps}) > 10
    assert all(0 < step["update"] < 1 for step in steps)
    assert {len(probe["general"]) for probe in found} == {16}
    assert {len(probe["samples"]) for probe in found} == {4}
    # byte tokenizer, 258 tokens: an untrained model guesses blindly
    assert found[0]["end_loss"] == pytest.approx(math.log(258), abs=0.4)
    assert np.mean(found[0]["general"]) == pytest.approx(math.log(258), abs=0.2)
    assert found[0]["train_loss"] == pytest.approx(math.log(258), abs=0.2)
    assert found[2]["train_loss"] < found[0]["train_loss"]


def test_the_losses_of_rows_stand_in_the_order_of_the_rows(tiny_model):
    """However they are put together to be scored."""
    from tunesmith.models.load import find, load_model, load_tokenizer

    found = find(str(tiny_model))
    tokenizer, model = load_tokenizer(found), load_model(found)
    rows = probes.general_rows(tokenizer, 6, 512)
    alone = [probes.Probes(tokenizer, general=(row,))(model)["general"][0] for row in rows]
    together = probes.Probes(tokenizer, general=rows, rows_at_once=4)(model)["general"]
    assert together == pytest.approx(alone, abs=2e-4)
    assert len(set(alone)) > 3


def test_stop_saves_and_ends_with_the_finding_and_resume_goes_on(train, tmp_path):
    wishes = {
        "optimizer__learning_rate": 30.0,
        "method__kind": "full",
        "evaluation__every_steps": 4,
        "save__every_steps": 100,
    }
    wishes |= UNWATCHED
    with pytest.raises(DiseaseFound, match="learning_rate_too_high since step 0.*resume") as caught:
        train(tmp_path / "run", diagnosis__on_disease="stop", **wishes)
    assert caught.value.exit_code == 9
    result = files.read_json(tmp_path / "run" / "result.json")
    assert result["findings"] == ["learning_rate_too_high"]
    assert result["stopped_early"]
    assert result["steps"] == 4
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-000004"]
    train(tmp_path / "run", resume=True, diagnosis__on_disease="stop", **wishes)
    assert files.read_json(tmp_path / "run" / "result.json")["steps"] == 18
    assert len(events(tmp_path / "run", "finding")) == 1


def test_stop_before_the_first_step_leaves_nothing_behind(train, tmp_path):
    with pytest.raises(DiseaseFound, match="too_few_rows"):
        train(tmp_path / "run", diagnosis__on_disease="stop", optimizer__epochs=20, **UNWATCHED)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_ignored_disease_is_not_said(train, tmp_path):
    made = train(tmp_path / "run", optimizer__epochs=20, diagnosis__ignore=["too_few_rows"], **UNWATCHED)
    assert "too_few_rows" not in made.findings


def test_a_loss_that_is_no_number_is_said_at_once(train, tmp_path):
    made = train(
        tmp_path / "run", optimizer__learning_rate=1e30, method__kind="full", evaluation__every_steps=100, **UNWATCHED
    )
    (found,) = events(tmp_path / "run", "finding")
    assert made.findings == ["diverging"]
    assert found["step"] <= 3
    assert events(tmp_path / "run", "step")[3]["loss"] is None


def mask(folder, what):
    """Take labels away in a prepared Dataset, as a tool with a wrong mask would."""
    for split in ("train", "held_out"):
        path = folder / f"{split}.trained.npy"
        np.save(path, what(np.load(path), np.load(folder / f"{split}.ids.npy")))
    manifest = files.read_json(folder / files.MANIFEST)
    for name, facts in manifest["files"].items():
        facts |= {"bytes": (folder / name).stat().st_size, "sha256": files.sha256(folder / name)}
    files.write_json(folder / files.MANIFEST, manifest)


def test_a_dataset_without_labels_is_named_before_the_first_step(train, tmp_path, tiny_model, rows_file):
    import tunesmith

    made = tunesmith.prepare(model=str(tiny_model), dataset=str(rows_file), out=tmp_path / "prepared")
    mask(made.dataset, lambda trained, _: trained & False)
    with pytest.raises(DiseaseFound, match="nothing_trained since step 0"):
        train(tmp_path / "stop", dataset__path=[str(made.dataset)], diagnosis__on_disease="stop")
    warned = train(tmp_path / "run", dataset__path=[str(made.dataset)], optimizer__steps=4)
    assert warned.findings == ["nothing_trained"]
    assert all(step["loss"] is None and step["update"] == 0 for step in events(tmp_path / "run", "step"))


def test_repetition_is_the_share_of_4_grams_that_came_before():
    assert probes.repetition([1, 2, 3, 4, 5, 6]) == 0
    assert probes.repetition([1] * 13) == pytest.approx(0.9)  # ten 4-grams, one of them new
    assert probes.repetition([1, 2, 3]) == 0


def test_the_pulse_is_the_relative_change_of_the_weights():
    layer = torch.nn.Linear(3, 2)
    pulse = Pulse(layer)
    weights = torch.cat([p.detach().reshape(-1) for p in layer.parameters()])
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.5)
    assert pulse.moved() == pytest.approx(float(0.5 * math.sqrt(8) / weights.norm()), rel=1e-5)
    assert pulse.moved() == 0
