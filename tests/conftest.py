"""Small real objects for all tests: a byte tokenizer with a chat template, a two-layer model; no network."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "llamafactory"
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def pytest_configure(config: pytest.Config) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the loopback interface may be reached."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in LOOPBACK:
            raise AssertionError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


def byte_tokenizer(template: str = CHATML, special: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")):
    """A tokenizer of 256 bytes and some special tokens; every text has exactly one tokenization."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=special[-1],
        pad_token=special[-1],
        additional_special_tokens=list(special[:-1]),
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    """The byte tokenizer with a ChatML template."""
    return byte_tokenizer()


def write_tiny_model(folder: Path, *, layers: int = 2, seed: int = 0, template: str = CHATML) -> Path:
    """A random two-layer Llama with the byte tokenizer, saved as a model folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokenizer = byte_tokenizer(template)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a two-layer model."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short alpaca rows."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    colours = ["red", "blue", "green", "grey", "black"]
    rows = [
        {"instruction": f"What colour has lamp {n}?", "input": "", "output": f"Lamp {n} is {colours[n % 5]}."}
        for n in range(40)
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def shared_data() -> Path:
    """The real data sets beside the checkout; skipped where they are missing."""
    if not SHARED.is_dir():
        pytest.skip("../shared/data/llamafactory is not here")
    return SHARED
