from __future__ import annotations

import json
import resource
import shutil

import pytest
import torch

from tests.exporting.conftest import adapter, base, make_model, make_tokenizer, put_adapter  # noqa: F401 - fixtures
from tunesmith import cli, verbs
from tunesmith.core.config import load
from tunesmith.core.errors import CapacityError, DataError, ModelError, ProofError
from tunesmith.exporting import merge
from tunesmith.verbs.export import ExportConfig, preview

QUICK = {"gguf": None, "proof": {"prompts": 2, "tokens": 6}}


def export(model, out, **options):
    return verbs.perform("export", load(ExportConfig, {"model": str(model), **QUICK, **options}), out, quiet=True)[0]


def test_a_package_of_safetensors_alone(adapter, tmp_path):  # noqa: F811
    made = export(adapter, tmp_path / "run", name="mine")
    assert made.package == tmp_path / "run" / "mine"
    assert made.proofs == dict.fromkeys(("merged_logits", "merged_answers", "template_tokens", "end_tokens"), True)
    assert set(made.not_made) == {"gguf_answers", "ollama_template"}
    assert list(made.files) == ["model/model.safetensors"]
    assert not (made.package / "Modelfile").exists()
    facts = json.loads((made.package / "package.json").read_text())
    assert (facts["weights"], facts["gguf"], facts["end_token"]) == ("model", None, "<|im_end|>")


def test_a_model_without_adapter_is_exported_as_it_is(base, tmp_path):  # noqa: F811
    made = export(base, tmp_path / "run")
    assert made.details["merged_logits"]["largest_difference"] == 0
    assert (made.package / "model" / "model.safetensors").stat().st_size == (base / "model.safetensors").stat().st_size


def test_bf16_is_rounded_and_measured(adapter, tmp_path):  # noqa: F811
    made = export(adapter, tmp_path / "run", precision="bf16", proof={"prompts": 2, "tokens": 6, "agreement": 0})
    assert made.details["merged_logits"]["precision"] == "bf16"
    assert 0 < made.details["merged_logits"]["mean_kl_nats"] < 0.02
    assert json.loads((made.package / "model" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_damaged_merge_is_set_aside(adapter, tmp_path, monkeypatch, capsys):  # noqa: F811
    true_merge = merge.merge

    def damaged(model, found):
        merged = true_merge(model, found)
        with torch.no_grad():
            merged.model.layers[0].mlp.down_proj.weight[0] += 0.5
        return merged

    monkeypatch.setattr(merge, "merge", damaged)
    words = ["export", str(adapter), "--gguf", "null", "--proof.prompts", "2", "--proof.tokens", "6", "--name", "mine"]
    assert cli.main([*words, "--out", str(tmp_path / "run"), "--quiet"]) == ProofError.exit_code == 7
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "mine: failed merged_logits" in told
    assert not (tmp_path / "run" / "mine").exists()
    certificate = json.loads((tmp_path / "run" / "mine.failed" / "certificate.json").read_text())
    assert certificate["passed"] is False
    assert certificate["proofs"]["merged_logits"]["passed"] is False
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_lost_end_token_is_set_aside(adapter, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(merge, "end_ids", lambda model, tokenizer: [3])
    with pytest.raises(ProofError, match="failed end_tokens"):
        export(adapter, tmp_path / "run")


def test_the_questions_of_the_user(adapter, tmp_path):  # noqa: F811
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "你好？", "completion": "Hi."}\n')
    made = export(adapter, tmp_path / "run", proof={"data": str(rows), "tokens": 6})
    told = json.loads((made.package / "certificate.json").read_text())
    assert told["asked"] == str(rows)
    assert [one["question"] for one in told["answers"]] == ["你好？"]


def test_nothing_fits(base, tmp_path):  # noqa: F811
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "long " * 300, "completion": "x"}) + "\n")
    with pytest.raises(DataError, match="no question fits the model's 1024 tokens"):
        export(base, tmp_path / "run", proof={"data": str(rows)})
    assert not (tmp_path / "run").exists()


def test_an_adapter_of_another_base(base, tmp_path):  # noqa: F811
    shutil.copytree(base, tmp_path / "base")
    folder = put_adapter(tmp_path / "base", tmp_path / "adapter")
    make_model(len(make_tokenizer()), tied=False).save_pretrained(tmp_path / "base")
    from tunesmith.core import files

    files.write_json(folder / "manifest.json", {"base": {"model": str(tmp_path / "base"), "weights_sha256": "other"}})
    with pytest.raises(ModelError, match="was trained on another base"):
        export(folder, tmp_path / "run")


def test_another_template_than_trained(adapter, base, tmp_path):  # noqa: F811
    shutil.copytree(adapter, tmp_path / "adapter")
    from tunesmith.core import files

    files.write_json(tmp_path / "adapter" / "manifest.json", {"base": {"model": str(base)}, "template_sha256": "other"})
    with pytest.raises(ModelError, match="another chat template or vocabulary"):
        export(tmp_path / "adapter", tmp_path / "run")


def test_a_gguf_file_holds_nothing_to_export(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="has no safetensors weights to export"):
        export(tmp_path / "x.gguf", tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gguf", "q4_k_m"], "gguf: must be one of"),
        (["--precision", "fp8"], "precision: must be one of"),
        (["--name", "../up"], "name"),
        (["--proof.prompts", "0"], "proof.prompts: must be at least 1"),
        (["--merge", "true"], "unknown option 'merge'"),
    ],
)
def test_wrong_words(words, said, base, tmp_path, capsys):  # noqa: F811
    assert cli.main(["export", str(base), *words, "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_full_disk_leaves_nothing(base, tmp_path):  # noqa: F811
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # the weights do not fit, the tokenizer does
    try:
        with pytest.raises(CapacityError, match="cannot be written"):
            export(base, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "run").exists()


def test_preview_names_what_would_happen():
    said = preview(load(ExportConfig, {"model": "embedded"}))
    assert "export embedded" in said
    assert "GGUF q8_0" in said
