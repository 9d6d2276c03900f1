from __future__ import annotations

import json
import shutil

import pytest

from tunesmith import verbs
from tunesmith.core import files
from tunesmith.core.config import load
from tunesmith.core.errors import ProofError
from tunesmith.core.examples import Message
from tunesmith.engines.contract import Request, Sampling, complete_many
from tunesmith.engines.llama_cpp import LlamaCpp
from tunesmith.exporting.package import licence_of, origin_of
from tunesmith.models.load import Found, find, load_model, load_tokenizer
from tunesmith.verbs.export import ExportConfig


def test_a_package_is_whole_and_found_as_a_model(package):
    made, _ = package
    assert files.verify(made.package) is None
    found = find(str(made.package))
    assert (found.base, found.gguf, found.adapter) == (made.package / "model", made.package / "model-q8_0.gguf", None)
    assert load_model(found).config.num_hidden_layers == 2
    assert load_tokenizer(found).eos_token == "<|im_end|>"


def test_a_run_stands_for_its_package(package):
    made, run = package
    assert find(str(run)).base == made.package / "model"


def test_every_proof_holds(package):
    made, run = package
    assert made.proofs == dict.fromkeys(
        ("merged_logits", "merged_answers", "template_tokens", "gguf_answers", "end_tokens", "ollama_template"), True
    )
    assert made.not_made == {}
    told = json.loads((made.package / "certificate.json").read_text())
    assert told["passed"] is True
    assert told["proofs"]["template_tokens"]["readers"] == ["the saved tokenizer", "llama.cpp"]
    assert json.loads((run / "result.json").read_text())["proofs"] == made.proofs


@pytest.mark.slow
def test_a_tokenizer_that_the_gguf_does_not_follow_is_caught(real_base, tmp_path):
    """Without its digit splitting the tokenizer has the converter's known hash all the same, and other ids in llama.cpp."""
    base = shutil.copytree(real_base, tmp_path / "base")
    told = json.loads((base / "tokenizer.json").read_text())
    told["pre_tokenizer"] = told["pre_tokenizer"]["pretokenizers"][1]
    (base / "tokenizer.json").write_text(json.dumps(told))
    config = load(ExportConfig, {"model": str(base), "proof": {"prompts": 1, "tokens": 4}})
    with pytest.raises(ProofError, match="failed template_tokens"):
        verbs.perform("export", config, tmp_path / "run", quiet=True)
    proof = json.loads((tmp_path / "run" / "base.failed" / "certificate.json").read_text())["proofs"]["template_tokens"]
    assert {one["reader"] for one in proof["differing"]} == {"llama.cpp"}


def test_llama_cpp_answers_from_the_package(package):
    talk = (Message("user", "What is the capital of France?"),)
    engine = LlamaCpp(context=256, slots=1)
    (reply,) = complete_many(
        lambda: engine.open(find(str(package[0].package))), [Request(talk, sampling=Sampling(max_tokens=4))]
    )
    assert reply.completion_tokens == 4


def test_the_card(package):
    card = (package[0].package / "README.md").read_text()
    assert "| gguf_answers | true |" in card
    assert "ollama create tiny -f Modelfile" in card


def a_run(folder, adapter):
    checkpoint = folder / "kettle" / "checkpoints" / "checkpoint-000003"
    shutil.copytree(adapter, checkpoint)
    files.write_json(
        checkpoint / "manifest.json", {"base": {"model": "base-as-typed"}, "template_sha256": "abc", "files": {}}
    )
    files.write_text(folder / "kettle" / "config.yaml", "method: {kind: lora, rank: 4}\nseed: 7\n")
    files.write_json(
        folder / "kettle" / "result.json", {"checkpoint": str(checkpoint), "held_out_loss": 1.25, "dataset": "gone"}
    )
    (folder / "kettle" / "dataset").mkdir()
    return checkpoint


def test_a_checkpoint_knows_its_run(adapter, base, tmp_path):
    checkpoint = a_run(tmp_path, adapter)
    origin = origin_of(str(checkpoint), Found("x", base, adapter=checkpoint))
    assert (origin.name, origin.base, origin.template_sha256) == ("kettle", "base-as-typed", "abc")
    assert origin.config["seed"] == 7
    assert origin.result["held_out_loss"] == 1.25
    assert origin.dataset == str(tmp_path / "kettle" / "dataset"), "the run was moved"


@pytest.mark.parametrize(
    ("typed", "name"), [("hf:Owner/Some-Model", "Some-Model"), ("embedded", "embedded"), ("a b/ü!", "ü")]
)
def test_a_name_without_a_run(base, typed, name):
    assert origin_of(typed, Found("x", base)).name == name


def test_the_licence_is_read_from_the_bases_card(base, tmp_path):
    assert licence_of(Found("x", base), "x") is None
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Hi\nlicense: gpl\n")
    assert licence_of(Found("x", tmp_path), "x") == "mit"
    assert licence_of(Found("x", base), "embedded") == "apache-2.0"
