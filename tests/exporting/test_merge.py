from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from tests.exporting.conftest import CHATML, LLAMA3, MISTRAL, make_model, make_tokenizer, put_adapter
from tunesmith.core.errors import CapacityError, ModelError
from tunesmith.exporting import merge
from tunesmith.models.load import find


def merged_folder(found, target, precision="fp32"):
    from tunesmith.models.load import load_tokenizer

    merge.save(merge.merge(merge.load_exact(found), found), load_tokenizer(found), target, precision)
    return target


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}, {"r": 8, "lora_alpha": 4}])
def test_every_weight_is_w_plus_scale_b_a(base, tmp_path, options):
    found = find(str(put_adapter(base, tmp_path / "adapter", **options)))
    before, after = (
        load_file(base / "model.safetensors"),
        load_file(merged_folder(found, tmp_path / "m") / "model.safetensors"),
    )
    added = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    rank, alpha = options.get("r", 4), options.get("lora_alpha", 8)
    scale = alpha / (math.sqrt(rank) if options.get("use_rslora") else rank)
    assert set(before) == set(after)
    changed = 0
    for name, weight in before.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        expected = weight
        if f"{stem}.lora_A.weight" in added:
            expected = weight + scale * added[f"{stem}.lora_B.weight"] @ added[f"{stem}.lora_A.weight"]
            if options.get("use_dora"):  # Liu et al. 2024, eq. 5: magnitude times direction, row by row
                magnitude = added[f"{stem}.lora_magnitude_vector"]
                expected = expected * (magnitude / expected.norm(dim=1))[:, None]
            changed += 1
        assert torch.allclose(after[name], expected, atol=1e-6), name
    assert changed == 14


def test_nothing_of_the_adapter_is_left(adapter, base, tmp_path):
    folder = merged_folder(find(str(adapter)), tmp_path / "merged")
    told = (folder / "config.json").read_text() + (folder / "generation_config.json").read_text()
    assert not any(word in told.lower() for word in ("lora", "peft", "adapter"))
    assert not (folder / "adapter_config.json").exists()
    assert "lm_head.weight" not in load_file(folder / "model.safetensors"), "tied in the base, so tied here"


def test_untied_stays_untied(tmp_path):
    tokenizer = make_tokenizer()
    make_model(len(tokenizer), tied=False).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    found = find(str(put_adapter(tmp_path / "base", tmp_path / "adapter")))
    assert "lm_head.weight" in load_file(merged_folder(found, tmp_path / "m") / "model.safetensors")


def test_a_bf16_base_is_merged_in_fp32_and_kept_in_bf16(tmp_path):
    tokenizer = make_tokenizer()
    make_model(len(tokenizer), dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    found = find(str(put_adapter(tmp_path / "base", tmp_path / "adapter")))
    assert merge.stored_precision(found.base) == "bf16"
    after = load_file(merged_folder(found, tmp_path / "m", "bf16") / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    added = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    low, high = (added[f"base_model.model.{name}.lora_{which}.weight"] for which in "AB")
    exact = load_file(tmp_path / "base" / "model.safetensors")[f"{name}.weight"].float() + 2 * high @ low
    assert torch.equal(after[f"{name}.weight"], exact.to(torch.bfloat16))


def test_the_chat_template_is_the_trained_one(adapter, tmp_path):
    from transformers import AutoTokenizer

    other = tmp_path / "adapter"
    import shutil

    shutil.copytree(adapter, other)
    (other / "chat_template.jinja").write_text(CHATML.replace("Be kind.", "Be brief."))
    folder = merged_folder(find(str(other)), tmp_path / "merged")
    assert "Be brief." in AutoTokenizer.from_pretrained(folder).chat_template


def test_the_trained_end_token_ends_answers(base, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token == "</s>"
    folder = merged_folder(find(str(base)), tmp_path / "merged")
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [end, tokenizer.convert_tokens_to_ids("</s>")]
    assert generation["pad_token_id"] == tokenizer.pad_token_id
    assert not generation.get("_from_model_config")
    saved = AutoTokenizer.from_pretrained(folder)
    assert saved.eos_token == "<|im_end|>", "llama.cpp stops at the tokenizer's eos"
    assert tokenizer.eos_token == "</s>", "the one in memory stays as it was"


@pytest.mark.parametrize(("template", "end"), [(CHATML, "<|im_end|>"), (LLAMA3, "<|eot_id|>"), (MISTRAL, "</s>")])
def test_the_end_token_comes_from_the_template(template, end):
    tokenizer = make_tokenizer(template)
    assert tokenizer.convert_ids_to_tokens(merge.trained_end(tokenizer)) == end


def test_a_template_may_have_no_end_token():
    tokenizer = make_tokenizer("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    assert merge.trained_end(tokenizer) is None


def test_eos_stays_where_the_template_writes_it():
    tokenizer = make_tokenizer("{% for m in messages %}{{ eos_token }}{{ m.content }}<|im_end|>{% endfor %}")
    merge.use_trained_end(tokenizer)
    assert tokenizer.eos_token == "</s>"


def test_the_tokenizer_names_no_code(base, tmp_path):
    import shutil

    shutil.copytree(base, tmp_path / "base")
    path = tmp_path / "base" / "tokenizer_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}})
    )
    told = json.loads(
        (merged_folder(find(str(tmp_path / "base")), tmp_path / "m") / "tokenizer_config.json").read_text()
    )
    assert "auto_map" not in told
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_others_may_read_the_weights(base, tmp_path):
    folder = merged_folder(find(str(base)), tmp_path / "merged")
    assert (folder / "model.safetensors").stat().st_mode & 0o044 == 0o044


def test_prompt_tuning_cannot_be_merged(base, tmp_path):
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).save_pretrained(
        tmp_path / "a"
    )
    found = find(str(tmp_path / "a"))
    with pytest.raises(ModelError, match="changes no weights, so it cannot be merged. Got PROMPT_TUNING"):
        merge.merge(merge.load_exact(found), found)


def test_too_little_memory_is_said_before_loading(base, monkeypatch):
    from tunesmith.core import hardware

    monkeypatch.setattr(hardware, "probe", lambda: hardware.Machine(1, 1000, 1000))
    with pytest.raises(CapacityError, match="merging needs 0.0 GiB of memory"):
        merge.load_exact(find(str(base)))


def test_a_strange_precision_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"dtype": "float8_e4m3fn"}')
    with pytest.raises(ModelError, match="float8_e4m3fn"):
        merge.stored_precision(tmp_path)
