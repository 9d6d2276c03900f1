"""The verb end to end: echo answers, a tiny model's perplexity checked by hand, base found by the adapter, bad input."""

from __future__ import annotations

import json
import math

import pytest

import tunesmith
from tunesmith.cli import main
from tunesmith.core import files
from tunesmith.core.errors import DataError, ModelError, UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

ECHO = {"kind": "echo"}


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def rows(tmp_path):
    """Rows whose question holds the answer in the first nine of twelve: echo is right there."""
    said = ["Oswin" if n < 9 else "nobody" for n in range(12)]
    return write(
        tmp_path / "rows.jsonl",
        [
            {"instruction": f"Is it {who} {n}?", "output": f"It is Oswin {n}.", "expect": ["oswin"]}
            for n, who in enumerate(said)
        ],
    )


@pytest.fixture
def adapter(tiny_model, tmp_path):
    """A LoRA over the tiny model that changes it, in a checkpoint folder that names its base."""
    import torch

    from tunesmith.models.load import find, load_model
    from tunesmith.models.methods import Lora
    from tunesmith.models.stored import weights_fingerprint

    torch.manual_seed(1)
    method = Lora(rank=2)
    model = method.put(load_model(find(str(tiny_model))))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    base = {"model": str(tiny_model), "weights_sha256": weights_fingerprint(tiny_model)}
    with files.new_folder(tmp_path / "checkpoint", base=base) as folder:
        method.save(model, folder)
    return tmp_path / "checkpoint"


def loss_by_hand(model, tokenizer, question, answer):
    """(summed loss, tokens) of the answer and its end token after the question."""
    import torch

    turns = [{"role": "user", "content": question}]
    start = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (start, f"{answer}<|im_end|>"))
    with torch.no_grad():
        logits = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    picked = [logits[len(before) - 1 + n, token].item() for n, token in enumerate(after)]
    return -sum(picked), len(after)


def test_echo_scores_and_writes_the_folder(rows, tmp_path):
    made = tunesmith.evaluate(
        model="me", base="you", data=rows, engine=ECHO, metrics=["bleu", "exact"], out=tmp_path / "run"
    )
    assert made.tuned["exact"] == made.base["exact"] == 75
    assert made.difference["exact"]["verdict"] == "no clear difference"
    assert made.rows == 12
    assert files.verify(made.evaluation) is None
    result = files.read_json(tmp_path / "run" / "result.json")
    assert result["tuned"] == made.tuned
    assert result["signatures"]["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
    for name in ("answers", "report_markdown", "report_html"):
        assert (tmp_path / "run" / "evaluation" / result[name].rpartition("/")[2]).is_file()
    assert {event["event"] for _, event in files.read_jsonl(tmp_path / "run" / "events.jsonl")} >= {
        "scored",
        "finished",
    }


def test_table_on_screen(rows, tmp_path, capsys):
    words = [
        "evaluate",
        "me",
        "--base",
        "you",
        "--data",
        rows,
        "--data.rows",
        "4",
        "--engine",
        "echo",
        "--metrics",
        "exact",
    ]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    screen = capsys.readouterr().out
    assert "exact   100.00 %  100.00 %       +0.00  [+0.00, +0.00]  too few rows" in screen
    assert "Only 4 rows" in screen
    assert main([*words, "--out", str(tmp_path / "second"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tuned"] == {"exact": 100}


def test_perplexity_by_hand_and_the_base_of_an_adapter(tiny_model, adapter, rows, tmp_path):
    from tunesmith.models.load import find, load_model, load_tokenizer

    made = tunesmith.evaluate(model=str(adapter), data=rows, metrics=["perplexity"], out=tmp_path / "run")
    asked = [row for _, row in files.read_jsonl(tmp_path / "rows.jsonl")]
    for numbers, model in ((made.base, tiny_model), (made.tuned, adapter)):
        found = find(str(model))
        loaded, tokenizer = load_model(found).eval(), load_tokenizer(found)
        parts = [loss_by_hand(loaded, tokenizer, row["instruction"], row["output"]) for row in asked]
        loss, tokens = (sum(column) for column in zip(*parts, strict=True))
        assert numbers["perplexity"] == pytest.approx(math.exp(loss / tokens), rel=1e-5)
    assert made.base_model == str(tiny_model)
    assert made.base["perplexity"] != pytest.approx(made.tuned["perplexity"], rel=1e-3)


def test_both_models_answer_through_the_engine_sampled_alike(tiny_model, adapter, rows, tmp_path):
    answers = []
    for number, seed in enumerate((5, 5, 6)):
        made = tunesmith.evaluate(
            model=str(adapter), data={"path": rows, "rows": 3}, metrics="bleu", seed=seed, out=tmp_path / f"run{number}",
            engine={"kind": "transformers", "precision": "fp32", "threads": 1}, sampling={"max_tokens": 6, "temperature": 1.0},
        )  # fmt: skip
        written = [row for _, row in files.read_jsonl(made.answers)]
        answers.append([(row["base"]["answer"], row["tuned"]["answer"]) for row in written])
    assert answers[0] == answers[1] != answers[2]
    assert all(base != tuned for base, tuned in answers[0])
    assert files.read_json(made.evaluation / "evaluation.json")["tuned"]["engine"] == "transformers"


def test_no_base_where_none_is_known_or_wanted(tiny_model, adapter, rows, tmp_path):
    plain = tunesmith.evaluate(model=str(tiny_model), data=rows, metrics="perplexity", out=tmp_path / "a")
    alone = tunesmith.evaluate(model=str(adapter), base=None, data=rows, metrics="perplexity", out=tmp_path / "b")
    assert plain.base is plain.difference is plain.base_model is None
    assert alone.base is None


def test_held_out_rows_of_a_prepared_dataset(tiny_model, rows_file, tmp_path):
    prepared = tunesmith.prepare(model=str(tiny_model), dataset=str(rows_file), share=0.25, out=tmp_path / "prepared")
    for number, data in enumerate((prepared.dataset, tmp_path / "prepared")):
        made = tunesmith.evaluate(
            model="me", data=str(data), engine=ECHO, metrics=["bleu"], out=tmp_path / f"run{number}"
        )
        assert made.rows == prepared.held_out_rows < 40


def test_dry_run_says_what_would_happen(rows, capsys, tmp_path):
    assert main(["evaluate", "me", "--data", rows, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("me", rows, "greedy", "bleu, exact, perplexity"))


@pytest.mark.parametrize(
    ("wishes", "error", "says"),
    [
        ({"data": "missing.jsonl"}, DataError, "missing.jsonl: no such file"),
        ({"metrics": ["blue"]}, UsageError, "Did you mean 'bleu'"),
        ({"metrics": []}, UsageError, "one metric or more"),
        ({"metrics": ["bleu", "bleu"]}, UsageError, "each once"),
        ({"model": "no/where/at-all", "engine": {"kind": "auto"}}, ModelError, "no such model"),
        ({"metrics": ["perplexity"]}, UsageError, "perplexity needs a model's weights"),
        (
            {"model": "http://127.0.0.1:9", "engine": {"kind": "auto"}, "metrics": ["perplexity"]},
            UsageError,
            "not a server",
        ),
        ({"resamples": 5}, UsageError, "at least 100"),
        ({"data": {"path": []}}, UsageError, "data.path"),
    ],
)
def test_bad_wishes_end_in_one_line_and_leave_nothing(wishes, error, says, rows, tmp_path):
    with pytest.raises(error, match=says) as raised:
        tunesmith.evaluate(
            **{"model": "me", "data": rows, "engine": ECHO, "metrics": ["exact"], "out": tmp_path / "run", **wishes}
        )
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("row", "metrics", "says"),
    [
        ({"messages": [{"role": "user", "content": "q"}]}, ["bleu"], "rows.jsonl:1: no assistant turn"),
        ({"instruction": "q", "output": 5}, ["exact"], "rows.jsonl:1: output must be text"),
        ({"instruction": "q", "output": "a", "expect": 5}, ["exact"], "rows.jsonl:1: expect must be"),
        ({"instruction": "q", "output": "a <|im_end|>"}, ["perplexity"], "rows.jsonl:1: text contains the control token"),
        ({"instruction": "q", "output": "a" * 600}, ["perplexity"], "rows.jsonl:1: ends .* beyond the model's context of 512"),
    ],
)  # fmt: skip
def test_bad_rows_end_in_one_line(row, metrics, says, tiny_model, tmp_path):
    path = write(tmp_path / "rows.jsonl", [row])
    engine = {"kind": "auto"} if metrics == ["perplexity"] else ECHO
    with pytest.raises(DataError, match=says) as raised:
        tunesmith.evaluate(model=str(tiny_model), data=path, engine=engine, metrics=metrics, out=tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_expect_alone_is_enough_for_exact(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"messages": [{"role": "user", "content": "Paris?"}], "expect": ["paris"]}])
    assert tunesmith.evaluate(model="me", data=path, engine=ECHO, metrics="exact", out=tmp_path / "run").tuned == {
        "exact": 100
    }
