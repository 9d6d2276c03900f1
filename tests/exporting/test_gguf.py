from __future__ import annotations

import pytest

from tunesmith.core.errors import CapacityError, MissingExtra, ModelError
from tunesmith.exporting import gguf
from tunesmith.exporting.certificate import interview
from tunesmith.models.load import find, load_tokenizer


def test_the_file_says_the_tokens_of_the_tokenizer(package):
    facts = gguf.read_facts(package[0].package / "model-q8_0.gguf")
    assert facts == gguf.Facts(ends=(2,), bos=1, adds_bos=False, pre="smollm")


@pytest.mark.slow
def test_the_converters_last_words_are_the_error(base, tmp_path):
    """The converter does not know the byte tokenizer of the tests: a real failure of the real converter."""
    with pytest.raises(
        ModelError, match=r"^gguf q8_0: llama.cpp's converter failed: .*BPE pre-tokenizer was not recognized"
    ):
        gguf.convert(base, tmp_path / "x.gguf", "q8_0", name="x", log=tmp_path / "convert.log")
    assert not (tmp_path / "x.gguf").exists()
    assert "Traceback" in (tmp_path / "convert.log").read_text()


def test_only_gguf_files_have_facts(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGML" + bytes(40))
    with pytest.raises(ModelError, match="is not a GGUF file"):
        gguf.read_facts(tmp_path / "x.gguf")


@pytest.mark.slow
def test_facts_are_what_llama_cpps_own_reader_says():
    from gguf import GGUFReader

    from tests.engines.conftest import gguf_file

    theirs = {}
    for key, field in GGUFReader(gguf_file()).fields.items():
        if field.types[0].name != "ARRAY" and not key.startswith("GGUF."):
            theirs[key] = field.contents()
    ours = {key: value for key, value in gguf._metadata(gguf_file()).items() if value is not None}
    assert ours == theirs


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(gguf._NEEDED, "no_such_module", "no-such-package")
    with pytest.raises(MissingExtra, match=r"needs the package no-such-package. pip install 'tunesmith\[quantize\]'"):
        gguf.converter()


@pytest.mark.parametrize(
    "words", ["OSError: [Errno 28] No space left on device", "OSError: 49152 requested and 0 written"]
)
def test_a_full_disk_is_no_fault_of_the_model(words, tmp_path, monkeypatch):
    script = tmp_path / "convert.py"
    script.write_text(f"raise SystemExit({words!r})")
    monkeypatch.setattr(gguf, "converter", lambda: script)
    with pytest.raises(CapacityError, match="disk full"):
        gguf.convert(tmp_path, tmp_path / "x.gguf", "f16", name="x", log=tmp_path / "log")


def test_last_words_pass_over_rulers_and_warnings(tmp_path):
    log = tmp_path / "log"
    log.write_text("INFO:x:start\nValueError: no such thing\n    ^^^^^\n*****\nWARNING:hf-to-gguf:whatever\n\n")
    assert gguf._last_words(log) == "ValueError: no such thing"
    log.write_text("")
    assert gguf._last_words(log) == "it said nothing"


@pytest.mark.slow
def test_the_embedded_model_has_one_tokenizer_everywhere():
    """transformers' GGUF import loses the splitting of digits; without it spaces and breaks before digits differ."""
    from tests.engines.conftest import gguf_file

    texts = [
        "1. one\n\n2. two\n\n10. ten",
        "  3  4",
        " ①",
        "在2024年，水壶价格是399元。",
        "x = 12345\n    return  42",
        "\r\n7",
        "\u00a0٣",
    ]
    tokenizer = load_tokenizer(find("embedded"))
    heard = interview(gguf_file(), [], texts, [], tokens=1, context=64)
    assert heard.read.rows == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
