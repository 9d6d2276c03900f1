"""Golden loss masks: what is trained under each kind of chat template."""

from __future__ import annotations

import pytest

from tiny import CHATML, byte_tokenizer
from tunesmith.core.errors import DataError
from tunesmith.core.examples import Conversation, Message
from tunesmith.data.render import render

LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "<bos>{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
THINKING = (  # as Qwen3: thinking is taken out of all but the last answer
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n"
    "{% endif %}{{ m['content'].split('</think>')[-1].lstrip('\n') }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m.tool_calls %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")

TWO_TURNS = (
    Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "Bye"), Message("assistant", "再见 👋"),
)  # fmt: skip


def trained_text(template: str, special: tuple[str, ...], messages: tuple[Message, ...], **more) -> list[str]:
    """The maximal trained stretches as text."""
    tokenizer = byte_tokenizer(template, special)
    row = render(Conversation(messages, "rows:1", **more), tokenizer, 10_000)
    pieces, current = [], []
    for token, flag in [*zip(row.ids, row.trained, strict=True), (None, False)]:
        if flag:
            current.append(token)
        elif current:
            pieces.append(tokenizer.decode(current))
            current = []
    return pieces


@pytest.mark.parametrize(
    ("template", "special", "messages", "wanted"),
    [
        (CHATML, CHATML_TOKENS, TWO_TURNS, ["Hello!<|im_end|>", "再见 👋<|im_end|>"]),
        (CHATML, CHATML_TOKENS, (Message("system", "Be kind."), *TWO_TURNS[:2]), ["Hello!<|im_end|>"]),
        (LLAMA3, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), TWO_TURNS,
         ["Hello!<|eot_id|>", "再见 👋<|eot_id|>"]),
        (GEMMA, ("<bos>", "<start_of_turn>", "<end_of_turn>"), TWO_TURNS, ["Hello!<end_of_turn>", "再见 👋<end_of_turn>"]),
        (MISTRAL, ("<s>", "</s>"), TWO_TURNS, [" Hello!</s>", " 再见 👋</s>"]),
        (THINKING, CHATML_TOKENS, TWO_TURNS, ["Hello!<|im_end|>", "<think>\n\n</think>\n\n再见 👋<|im_end|>"]),
        (CHATML, CHATML_TOKENS, (TWO_TURNS[0], Message("assistant", "Hello!", trained=False), *TWO_TURNS[2:]),
         ["再见 👋<|im_end|>"]),
        (CHATML, CHATML_TOKENS, (Message("user", "Q"), Message("assistant", "\nspaced ")), ["\nspaced <|im_end|>"]),
    ],
    ids=["chatml", "system", "llama3", "gemma", "mistral", "thinking", "untrained-turn", "spaces"],
)  # fmt: skip
def test_only_assistant_turns_and_their_end_tokens_are_trained(template, special, messages, wanted):
    assert trained_text(template, special, messages) == wanted


def test_tool_calls_are_trained_and_tool_answers_are_not():
    call = {"type": "function", "function": {"name": "boil", "arguments": {"to": 80}}}
    tool = {"type": "function", "function": {"name": "boil", "parameters": {}}}
    messages = (
        Message("user", "80 degrees please"), Message("assistant", "", (call,)),
        Message("tool", "done"), Message("assistant", "It is at 80."),
    )  # fmt: skip
    found = trained_text(TOOLS, ("<tool_call>", "</tool_call>", *CHATML_TOKENS), messages, tools=(tool,))
    assert [piece.endswith("<|im_end|>") for piece in found] == [True, True]
    assert '"boil"' in found[0]
    assert found[1] == "It is at 80.<|im_end|>"


def test_a_template_without_room_for_tools_refuses_the_row(tokenizer):
    tool = {"type": "function", "function": {"name": "boil", "parameters": {}}}
    with pytest.raises(DataError, match="no place for tools"):
        render(Conversation(TWO_TURNS, "rows:1", tools=(tool,)), tokenizer, 100)


def test_a_swallowed_turn_refuses_the_row():
    deaf = byte_tokenizer(CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"))
    with pytest.raises(DataError, match="leaves out the text of a system turn"):
        render(Conversation((Message("system", "Be kind."), *TWO_TURNS), "rows:1"), deaf, 100)


def test_control_tokens_inside_text_refuse_the_row(tokenizer):
    messages = (Message("user", "say <|im_end|>"), Message("assistant", "no"))
    with pytest.raises(DataError, match=r"control token '<\|im_end\|>'"):
        render(Conversation(messages, "rows:1"), tokenizer, 100)


def test_no_assistant_turn_is_named(tokenizer):
    with pytest.raises(DataError, match="no assistant turn. Add one or remove the row"):
        render(Conversation((Message("user", "Hi"),), "rows:1"), tokenizer, 100)


def test_cutting_counts_what_is_lost(tokenizer):
    whole = render(Conversation(TWO_TURNS, "rows:1"), tokenizer, 10_000)
    cut = render(Conversation(TWO_TURNS, "rows:1"), tokenizer, len(whole.ids) - 3)
    assert cut.ids == whole.ids[:-3]
    assert cut.lost_tokens == 3
    assert cut.lost_trained == sum(whole.trained[-3:]) == 2  # a byte of the emoji and <|im_end|>; not the newline
    assert whole.end_trained
    assert not cut.end_trained
