from __future__ import annotations

import json
import re

import pytest

from tests.exporting.conftest import CHATML, GEMMA, LLAMA3, MISTRAL, make_tokenizer
from tunesmith.core.errors import ModelError
from tunesmith.core.examples import Message
from tunesmith.data.render import render_text
from tunesmith.exporting.gguf import Facts
from tunesmith.exporting.ollama import derive, first_difference, go_template, modelfile, trims, write_modelfile
from tunesmith.exporting.prompts import bare, template_cases

DATED = CHATML.replace("Be kind.", "{{ strftime_now('%d %b %Y') }}")
LAST_SYSTEM = (  # Mistral Tekken: the system text stands before the last user turn
    "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}{% set ns.system = m.content %}"
    "{% elif m.role == 'user' %}[INST]{% if loop.last %}{{ ns.system }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
NUMBERED = "{% for m in messages %}[{{ loop.index }}] {{ m.content }}<|im_end|>{% endfor %}[next]"
SHOUTED = "{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}"
FIRST_APART = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<s>' if loop.first else '\n' }}Q: {{ m.content }}\n"
    "{% else %}A: {{ m.content }}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
)


def run_go(template: str, messages) -> str:
    """Go's text/template for what we write, by way of Jinja2; keeps Go's rule that `{{-` cuts white space before it."""
    from jinja2 import Environment

    text = re.sub(r"\s+\{\{-", "{{", template).replace("{{-", "{{")
    words = {
        "if .System": "{% if system %}",
        ".System": "{{ system }}",
        ".Content": "{{ m.content }}",
        "else": "{% else %}",
        "range $i, $_ := .Messages": "{% for m in messages %}",
        "$last := eq (len (slice $.Messages $i)) 1": "{% set last = loop.last %}",
        'if eq .Role "user"': "{% if m.role == 'user' %}",
        'else if eq .Role "assistant"': "{% elif m.role == 'assistant' %}",
        "if not $last": "{% if not last %}",
        'if and $last (ne .Role "assistant")': "{% if last and m.role != 'assistant' %}",
        "$first := true": "{% set ns = namespace(first=true) %}",
        "if $first": "{% if ns.first %}",
        "$first = false": "{% set ns.first = false %}",
    }
    out, open_blocks = [], []
    for literal, action in re.findall(r'\{\{ ?("(?:[^"\\]|\\.)*") ?\}\}|\{\{ ?(.*?) ?\}\}', text):
        if literal:
            out.append("{{ " + json.dumps(json.loads(literal)) + " }}")
        elif action == "end":
            out.append("{% end" + open_blocks.pop() + " %}")
        else:
            out.append(words[action])
            if action.startswith(("if", "range")):
                open_blocks.append("for" if action.startswith("range") else "if")
    assert not open_blocks
    assert not re.sub(r'\{\{ ?(?:"(?:[^"\\]|\\.)*"|.*?) ?\}\}', "", text).strip(), "text outside of literals"
    system = "\n\n".join(m.content for m in messages if m.role == "system")
    return Environment().from_string("".join(out)).render(system=system, messages=messages)


@pytest.mark.parametrize(
    "template", [CHATML, LLAMA3, GEMMA, MISTRAL, FIRST_APART], ids=["chatml", "llama3", "gemma", "mistral", "first"]
)
def test_the_go_template_writes_the_same_text(template):
    tokenizer = make_tokenizer(template)
    turns = derive(tokenizer)
    cases = [bare(messages) for messages in template_cases(tokenizer)]
    assert len(cases) >= 13
    assert first_difference(tokenizer, turns, cases) is None
    go = go_template(turns)
    for messages in cases:
        if turns.system_prefix is None and messages[0].role == "system":
            continue
        assert run_go(go, messages) == render_text(tokenizer, messages, generation_prompt=True)


def test_the_default_system_text_is_in_the_opening():
    turns = derive(make_tokenizer(CHATML))
    assert turns.opening == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"
    assert (turns.system_prefix, turns.user_suffix, turns.generation) == (
        "<|im_start|>system\n", "<|im_end|>\n", "<|im_start|>assistant\n",
    )  # fmt: skip


def test_a_system_text_inside_the_first_turn():
    turns = derive(make_tokenizer(GEMMA))
    assert turns.system_prefix == "<s><start_of_turn>user\n"
    assert turns.system_suffix == "\n\n"
    assert "{{ if $first }}" in go_template(turns)


def test_a_template_that_takes_no_system_message():
    turns = derive(make_tokenizer(MISTRAL))
    assert turns.system_prefix is None
    assert ".System" not in go_template(turns)


def test_bos_is_left_out_where_the_runtime_adds_it():
    turns = derive(make_tokenizer(LLAMA3))
    assert '"<s>' in go_template(turns)
    assert "<s>" not in go_template(turns, leave_out="<s>")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (DATED, "writes the date of the day"),
        (NUMBERED, "by their place"),
        (SHOUTED, "exactly once"),
        ("{{ raise_exception('never') }}", "refuses a plain conversation"),
    ],
)
def test_what_cannot_be_expressed_is_said(template, reason):
    with pytest.raises(ModelError, match=reason):
        derive(make_tokenizer(template))


def test_pieces_that_give_other_text_are_not_written(tmp_path):
    """The probes cannot see everything: here the system text moves with the last turn."""
    from transformers import GenerationConfig

    GenerationConfig(eos_token_id=2).save_pretrained(tmp_path / "model")
    proof = write_modelfile(make_tokenizer(LAST_SYSTEM), tmp_path, "x.gguf", Facts((), None, False, ""))
    assert proof.passed is None
    assert "cannot be a Go template" in proof.line
    assert not (tmp_path / "Modelfile").exists()


def test_a_changed_piece_is_seen():
    from dataclasses import replace

    tokenizer = make_tokenizer(CHATML)
    cases = [bare(messages) for messages in template_cases(tokenizer)]
    turns = derive(tokenizer)
    for piece in (
        "opening",
        "system_suffix",
        "user_prefix",
        "user_suffix",
        "assistant_prefix",
        "assistant_suffix",
        "generation",
    ):
        damaged = replace(turns, **{piece: getattr(turns, piece) + " "})
        assert first_difference(tokenizer, damaged, cases), piece


def test_trimming_is_noticed():
    assert trims(make_tokenizer(LLAMA3))
    assert not trims(make_tokenizer(CHATML))


def test_modelfile(tmp_path):
    from transformers import GenerationConfig

    tokenizer = make_tokenizer(CHATML)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "</s>"])
    GenerationConfig(eos_token_id=ends).save_pretrained(tmp_path / "model")
    proof = write_modelfile(tokenizer, tmp_path, "model-q8_0.gguf", Facts((), None, False, ""))
    assert proof.passed
    lines = (tmp_path / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./model-q8_0.gguf"
    assert lines[1].startswith('TEMPLATE """{{- if .System }}')
    assert lines[-4:] == [
        'PARAMETER stop "<|im_end|>"', 'PARAMETER stop "</s>"', "PARAMETER temperature 0", "PARAMETER repeat_penalty 1",
    ]  # fmt: skip


def test_sampling_is_that_of_the_generation_config():
    from transformers import GenerationConfig

    text = modelfile(
        "x.gguf", "{{ .Prompt }}", [], GenerationConfig(do_sample=True, temperature=0.6, top_p=0.95, top_k=20)
    )
    assert text.splitlines()[2:] == [
        "PARAMETER temperature 0.6", "PARAMETER top_p 0.95", "PARAMETER top_k 20", "PARAMETER repeat_penalty 1",
    ]  # fmt: skip


def test_three_quotes_cannot_stand_in_a_modelfile():
    with pytest.raises(ModelError, match='writes """'):
        modelfile("x.gguf", '"""', [], None)


def test_messages_with_braces_are_texts_only():
    tokenizer = make_tokenizer(CHATML)
    talk = [Message("user", '{{ .System }} {% if %} "x" \\n')]
    assert run_go(go_template(derive(tokenizer)), talk) == render_text(tokenizer, talk, generation_prompt=True)
