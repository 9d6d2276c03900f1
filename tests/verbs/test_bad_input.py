"""Every mistake: one line on standard error, the documented exit code, no traceback, nothing written half."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from tunesmith import cli
from tunesmith.core import files
from tunesmith.core.errors import CapacityError, DataError, ModelError, ServiceError, UsageError


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys):
    """`typed("train", ...)` -> (exit code, the line); asserts that it is one line and that nothing half is left."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str]:
        before = set(tmp_path.rglob("*"))
        code = cli.main([str(word) for word in words])
        printed = capsys.readouterr()
        said = [line for line in printed.err.splitlines() if line.strip()]
        assert "Traceback" not in printed.err
        assert len(said) == (1 if code else 0), printed.err
        kept = tmp_path / "cache"  # whole rows that the next try reads
        left = {path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(kept)} - before
        assert {path.parent.name for path in left if path.name not in {"config.yaml", "events.jsonl"}} <= {"dataset"}
        assert all(files.verify(path) is None for path in tmp_path.glob("runs/*/dataset"))  # whole, and of use
        return code, said[0] if said else ""

    return call


def rows(path: Path, *documents: object) -> str:
    path.write_text("\n".join(json.dumps(d) if not isinstance(d, str) else d for d in documents), encoding="utf-8")
    return str(path)


GOOD = {"instruction": "What is it?", "output": "A kettle."}


@pytest.mark.parametrize(
    ("documents", "more", "said"),
    [
        ([], [], "is empty"),
        ([GOOD, '{"instruction": '], [], "rows.jsonl:2: not valid JSON"),
        ([{"instructions": "a", "outputs": "b"}], [], "Did you mean 'instruction'"),
        (
            [{"messages": [{"role": "user", "content": "Hi"}]}],
            [],
            "rows.jsonl:1: no assistant turn. Add one or remove the row",
        ),
        ([GOOD, GOOD], ["--cutoff", "30"], "within the cutoff of 30"),
    ],
    ids=["empty", "broken-line", "wrong-keys", "no-assistant", "all-longer"],
)
@pytest.mark.parametrize("verb", ["prepare", "train"])
def test_rows(typed, tmp_path, tiny_model, verb, documents, more, said):
    code, line = typed(verb, rows(tmp_path / "rows.jsonl", *documents), "--model", tiny_model, *more)
    assert code == DataError.exit_code
    assert said in line


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["trian"], UsageError.exit_code, "unknown verb 'trian'. Did you mean 'train'?"),
        (["train", "rows.jsonl", "--modle", "embedded"], UsageError.exit_code, "unknown option 'modle'. Did you mean 'model'?"),
        (["train", "rows.jsonl", "--model", "m", "--method.rank", "0"], UsageError.exit_code, "method.rank: must be at least 1. Got 0."),
        (["train", "rows.jsonl", "--model"], UsageError.exit_code, "--model: needs a value"),
        (["train", "rows.jsonl"], UsageError.exit_code, "model: is required"),
        (["train", "gone.yaml"], UsageError.exit_code, "gone.yaml: cannot be read"),
        (["train", "--resume"], UsageError.exit_code, "--resume: needs the folder of the interrupted run"),
        (["prepare", "rows.jsonl", "--model", "m", "--resume"], UsageError.exit_code, "prepare has nothing to resume"),
        (["train", "rows.jsonl", "--model", "./nowhere"], ModelError.exit_code, "no such model folder"),
        (["export", "rows.jsonl"], ModelError.exit_code, "rows.jsonl"),
        (["serve", "./nowhere"], ModelError.exit_code, "no such model folder"),
        (["train", "rows.jsonl", "--model", "m", "--dataset", "b.jsonl"], UsageError.exit_code, "takes dataset once. Got rows.jsonl."),
        (["train", "rows.jsonl", "--model", "m", "--dataset.path", "b.jsonl"], UsageError.exit_code, "takes dataset once. Got rows.jsonl."),
        (["export", "a", "--model", "b"], UsageError.exit_code, "takes model once. Got a."),
        (["train", "rows.jsonl", "--model", "m", "--out", ""], UsageError.exit_code, "--out: needs a folder"),
        (["train", "rows.jsonl", "--model", "m", "--batch.rows", "true"], UsageError.exit_code, "batch.rows: must be a number. Got True."),
        (["train", "rows.jsonl", "--model", "m", "--seed", "-1"], UsageError.exit_code, "seed: must be at least 0. Got -1."),
        (["train", "rows.jsonl", "--model", "m", "--seed", "9" * 30], UsageError.exit_code, "seed: must be at most 4294967295."),
        (["train", "rows.jsonl", "--model", "m", "--method.targets", "7"], UsageError.exit_code, "method.targets: must be one of all-linear. Got 7."),
        (["train", "rows.jsonl", "--model", "m", "--method.kind", "7"], UsageError.exit_code, "bottleneck. Got 7."),
        (["train", "rows.jsonl", "--model", "m", "--devices.kind", "ddp", "--devices.hosts", "[a, a]"], UsageError.exit_code, "hosts: each one once"),
        (["train", "rows.jsonl", "--model", "m", "--devices.kind", "ddp", "--devices.hosts", "[a:1, b]"], UsageError.exit_code, "their port goes into devices.port"),
        (["train", "rows.jsonl", "--model", "m", "--devices.kind", "ddp", "--devices.hosts", "[a, '']"], UsageError.exit_code, "hosts: must be names"),
    ],
)  # fmt: skip
def test_words(typed, tmp_path, words, code, said):
    rows(tmp_path / "rows.jsonl", GOOD)
    assert typed(*words)[0] == code
    assert said in typed(*words)[1]


def test_yaml_keys_that_are_no_words(typed, tmp_path):
    (tmp_path / "their.yaml").write_text("? [a, b]\n: 1\n", encoding="utf-8")
    for verb in ("train", "migrate"):
        assert typed(verb, "their.yaml") == (
            UsageError.exit_code,
            "their.yaml:1: not valid YAML: a key must be a word.",
        )


def test_held_out_rows_of_another_kind(typed, tmp_path, tiny_model):
    pair = {"prompt": "What is it?", "chosen": "A kettle.", "rejected": "A cat."}
    good, pairs = rows(tmp_path / "rows.jsonl", *[GOOD] * 4), rows(tmp_path / "pairs.jsonl", pair)
    for verb in ("prepare", "train"):
        code, line = typed(verb, good, "--model", tiny_model, "--dataset.held_out", pairs)
        assert code == DataError.exit_code
        assert "held-out rows must be conversation rows like the others. Got 'preference rows (preference)'." in line


def test_what_is_prepared_stays_as_it_is(typed, tmp_path, tiny_model):
    words = ["--model", str(tiny_model), "--quiet"]
    assert (
        cli.main(["prepare", rows(tmp_path / "rows.jsonl", *[GOOD] * 4), *words, "--out", str(tmp_path / "made")]) == 0
    )
    for option, value in (("cutoff", "9"), ("dataset.overlong", "drop"), ("evaluation.share", "0.5")):
        code, line = typed("train", tmp_path / "made", *words, f"--{option}", value)
        assert code == UsageError.exit_code
        assert f"{option}: {tmp_path / 'made'} is prepared already. Leave it out" in line
    for again in (tmp_path / "made", tmp_path / "made" / "dataset"):
        code, line = typed("prepare", again, *words)
        assert code == DataError.exit_code
        assert "is prepared already" in line
    code, line = typed("train", tmp_path / "made", "--resume")
    assert code == UsageError.exit_code
    assert "is no train run. Got 'a prepare run'." in line


def test_targets_that_do_not_exist(typed, tmp_path, tiny_model):
    code, line = typed(
        "train", rows(tmp_path / "rows.jsonl", *[GOOD] * 4), "--model", tiny_model, "--method.targets", "[qq]"
    )
    assert code == UsageError.exit_code
    assert "method.targets: names no linear layer of this model. Got qq. Known: down_proj" in line


def test_not_enough_memory(typed, tmp_path, tiny_model):
    path = rows(tmp_path / "rows.jsonl", *[GOOD] * 4)
    code, line = typed("train", path, "--model", tiny_model, "--memory.limit_bytes", "1000000", "--quiet")
    assert code == CapacityError.exit_code
    assert "the run needs about" in line


def test_a_run_folder_in_use(typed, tmp_path, tiny_model):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious", encoding="utf-8")
    code, line = typed("train", rows(tmp_path / "rows.jsonl", GOOD), "--model", tiny_model, "--out", tmp_path / "mine")
    assert code == UsageError.exit_code
    assert "is not empty. Choose another --out" in line


def test_a_folder_that_is_no_package(typed, tmp_path):
    (tmp_path / "photos").mkdir()
    for verb in ("serve", "export", "chat"):
        code, line = typed(verb, "./photos")
        assert code == ModelError.exit_code
        assert "photos" in line


def test_a_port_that_is_taken(typed, tiny_model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, line = typed("serve", tiny_model, "--port", taken.getsockname()[1], "--quiet")
    assert code == ServiceError.exit_code
    assert "port" in line


def test_an_adapter_over_another_base(typed, tmp_path, tiny_model, rows_file):
    import shutil

    from tiny import write_tiny_model

    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    words = [
        "train",
        str(rows_file),
        "--model",
        str(base),
        "--optimizer.steps",
        "1",
        "--out",
        str(tmp_path / "run"),
        "--quiet",
    ]
    assert cli.main([*words, "--precision", "fp32"]) == 0
    shutil.rmtree(base)
    write_tiny_model(base, seed=1)
    code, line = typed("export", tmp_path / "run")
    assert code == ModelError.exit_code
    assert "was trained on another base" in line


def test_a_full_disk(tmp_path, tiny_model, rows_file):
    """A file may not grow beyond 20 kB: the first checkpoint cannot be written."""
    import resource
    import subprocess
    import sys

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", "train", str(rows_file), "--model", str(tiny_model), "--out", "run", "--quiet",
         "--optimizer.steps", "2"],
        cwd=tmp_path, preexec_fn=limit, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == CapacityError.exit_code, done.stderr
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "run" / "checkpoints").glob("*")) == []
