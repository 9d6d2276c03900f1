"""Two-layer Llama models with a byte tokenizer, made in memory, and adapters on them saved by peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set talk = messages[1:] %}{% else %}{% set first = '' %}{% set talk = messages %}{% endif %}"
    "{% for m in talk %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% if loop.first %}{{ first }}{% endif %}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system message here') }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
MARKS = (
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>",
    "<end_of_turn>", "[INST]", "[/INST]",
)  # fmt: skip


def make_tokenizer(template: str = CHATML, eos: str = "</s>") -> Any:
    """A byte tokenizer with the special tokens of all the templates above."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={char: number for number, char in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token=eos, pad_token="<pad>")
    made.add_special_tokens({"additional_special_tokens": list(MARKS)})
    made.chat_template = template
    return made


def make_model(vocabulary: int, *, tied: bool = True, dtype: torch.dtype = torch.float32) -> Any:
    """Random weights, large enough that one token clearly leads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=tied, initializer_range=0.2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).eval()


def put_adapter(base: Path, folder: Path, **options: Any) -> Path:
    """A LoRA adapter with random A and B on a saved base, beside its tokenizer."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(4)
    wish = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False, **options}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **wish))
    for name, weight in tuned.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.08)
    tuned.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved two-layer base model."""
    folder = tmp_path_factory.mktemp("models") / "base"
    tokenizer = make_tokenizer()
    make_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter on it."""
    return put_adapter(base, tmp_path_factory.mktemp("adapters") / "lora")


@pytest.fixture(scope="session")
def real_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer model with the embedded model's tokenizer, which llama.cpp's converter knows."""
    from tunesmith.models.load import find, load_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = load_tokenizer(find("embedded"))
    make_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def package(real_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """An adapter on it, exported by the verb as a person does: the artifact and the run folder."""
    from tunesmith import verbs
    from tunesmith.core.config import load
    from tunesmith.verbs.export import ExportConfig

    folder = tmp_path_factory.mktemp("exports")
    adapter = put_adapter(real_base, folder / "adapter")
    config = load(ExportConfig, {"model": str(adapter), "name": "tiny", "proof": {"prompts": 4, "tokens": 12}})
    return verbs.perform("export", config, folder / "run", quiet=True)
