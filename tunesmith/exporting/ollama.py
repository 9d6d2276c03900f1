"""A chat template as Ollama's Go template: taken apart by probing, put together again and compared. Runs no Ollama."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.core import files
from tunesmith.core.errors import DataError, ModelError
from tunesmith.core.examples import Message, Role
from tunesmith.data.render import render_text
from tunesmith.exporting.certificate import Proof
from tunesmith.exporting.merge import as_list
from tunesmith.exporting.package import MODELFILE, WEIGHTS
from tunesmith.exporting.prompts import bare, template_cases

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from tunesmith.exporting.gguf import Facts

_MARKS = ("q7OneQ7", "q7TwoQ7", "q7ThreeQ7", "q7FourQ7", "q7FiveQ7")
_SYSTEM = "q7SystemQ7"


@dataclass(frozen=True, slots=True)
class Turns:
    """What a chat template writes around the texts of a conversation."""

    opening: str
    """Before the first user text when there is no system message; holds the default system text where there is one."""
    system_prefix: str | None
    """Before the system text; None where the template takes no system message."""
    system_suffix: str
    """Between the system text and the first user text."""
    user_prefix: str
    """Before every later user text."""
    user_suffix: str
    assistant_prefix: str
    assistant_suffix: str
    generation: str
    """Behind the last user turn, so that the model answers."""

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation that ends with a user turn, as the Go template would write it."""
        system = "\n\n".join(message.content for message in messages if message.role == "system")
        parts = [self.opening]
        if system and self.system_prefix is not None:
            parts = [self.system_prefix, system, self.system_suffix]
        first = True
        for message in messages:
            if message.role == "user":
                parts += ["" if first else self.user_prefix, message.content, self.user_suffix]
                first = False
            elif message.role == "assistant":
                parts += [self.assistant_prefix, message.content, self.assistant_suffix]
        return "".join([*parts, self.generation])


def derive(tokenizer: PreTrainedTokenizerBase) -> Turns:
    """Take the tokenizer's chat template apart by rendering marked messages.

    Raises ModelError with the reason when the template is not of fixed pieces around the texts.
    """
    if "strftime_now" in str(tokenizer.chat_template):
        raise _inexpressible("it writes the date of the day")
    opening, tail = _around(tokenizer, _talk(1))
    head, asked, answered, *again, end = _around(tokenizer, _talk(5))
    if (head, end) != (opening, tail) or again != [asked, answered]:
        raise _inexpressible("it writes turns differently by their place")
    user_suffix = _tail(tokenizer, _talk(1))
    if not (asked.startswith(user_suffix) and tail.startswith(user_suffix)):
        user_suffix = ""
    assistant_suffix = _tail(tokenizer, _talk(2))
    if not answered.startswith(assistant_suffix):
        assistant_suffix = answered
    prefix, suffix = _system(tokenizer)
    return Turns(
        opening, prefix, suffix, answered[len(assistant_suffix) :], user_suffix,
        asked[len(user_suffix) :], assistant_suffix, tail[len(user_suffix) :],
    )  # fmt: skip


def _inexpressible(reason: str) -> ModelError:
    return ModelError("ollama", f"the chat template cannot be a Go template: {reason}")


def _talk(turns: int) -> list[Message]:
    roles: tuple[Role, ...] = ("user", "assistant", "user", "assistant", "user")
    return [Message(role, mark) for role, mark in zip(roles[:turns], _MARKS, strict=False)]


def _around(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[str]:
    """The pieces before, between and behind the messages' texts, with the beginning of the answer."""
    try:
        rest, pieces = render_text(tokenizer, messages, generation_prompt=True), []
    except DataError as error:
        raise _inexpressible(f"it refuses a plain conversation ({error})") from None
    for message in messages:
        piece, found, rest = rest.partition(message.content)
        if not found or message.content in rest:
            raise _inexpressible(f"it does not write the {message.role}'s text exactly once, in its place")
        pieces.append(piece)
    return [*pieces, rest]


def _tail(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    return render_text(tokenizer, messages).rpartition(messages[-1].content)[2]


def _system(tokenizer: PreTrainedTokenizerBase) -> tuple[str | None, str]:
    messages = [Message("system", _SYSTEM), *_talk(1)]
    try:
        text = render_text(tokenizer, messages, generation_prompt=True)
    except DataError:
        return None, ""
    if _SYSTEM not in text:
        return None, ""
    prefix, suffix, _ = _around(tokenizer, messages)
    return prefix, suffix


def first_difference(
    tokenizer: PreTrainedTokenizerBase, turns: Turns, cases: Sequence[Sequence[Message]]
) -> str | None:
    """Where the pieces give another text than the chat template itself; None where all cases are equal."""
    for messages in cases:
        if turns.system_prefix is None and any(message.role == "system" for message in messages):
            continue
        expected = render_text(tokenizer, messages, generation_prompt=True)
        if turns.render(messages) != expected:
            return f"{' + '.join(message.role for message in messages)}: {messages[-1].content[:40]!r}"
    return None


def trims(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template cuts white space around a text, which Ollama's language cannot."""
    return "  Q7" not in render_text(tokenizer, [Message("user", "  Q7")], generation_prompt=True)


def go_template(turns: Turns, *, leave_out: str = "") -> str:
    """The pieces in Ollama's language; `leave_out` is the beginning that Ollama itself adds (the bos token).

    All text stands in quoted literals, so that no white space depends on Go's trimming.
    """
    opening, before = turns.opening.removeprefix(leave_out), (turns.system_prefix or "").removeprefix(leave_out)
    between, user_prefix = turns.system_suffix, _literal(turns.user_prefix)
    has_system = turns.system_prefix is not None
    if opening.endswith(turns.user_prefix) and (between.endswith(turns.user_prefix) or not has_system):
        opening, between = opening.removesuffix(turns.user_prefix), between.removesuffix(turns.user_prefix)
        start = ""
    else:  # the first user turn begins in its own way
        start, user_prefix = (
            "{{- $first := true }}\n",
            f"{{{{ if $first }}}}{{{{ $first = false }}}}{{{{ else }}}}{user_prefix}{{{{ end }}}}",
        )
    system = f"{{{{- if .System }}}}{_literal(before)}{{{{ .System }}}}{_literal(between)}{{{{ else }}}}"
    head = f"{system}{_literal(opening)}{{{{ end }}}}" if has_system else f'{{{{- "" }}}}{_literal(opening)}'
    return (
        f"{start}{head}\n"
        "{{- range $i, $_ := .Messages }}\n"
        "{{- $last := eq (len (slice $.Messages $i)) 1 }}\n"
        f'{{{{- if eq .Role "user" }}}}{user_prefix}{{{{ .Content }}}}{_literal(turns.user_suffix)}\n'
        f'{{{{- else if eq .Role "assistant" }}}}{_literal(turns.assistant_prefix)}{{{{ .Content }}}}'
        f"{{{{ if not $last }}}}{_literal(turns.assistant_suffix)}{{{{ end }}}}\n"
        "{{- end }}\n"
        f'{{{{- if and $last (ne .Role "assistant") }}}}{_literal(turns.generation)}{{{{ end }}}}\n'
        "{{- end }}"
    )


def _literal(text: str) -> str:
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def modelfile(gguf: str, template: str, stops: Sequence[str], generation: Any) -> str:
    """Ollama's Modelfile for a GGUF file beside it.

    Sampling is that of the generation config; where that does not sample, Ollama shall not either (its own default
    is temperature 0.8). Raises ModelError for a template that a Modelfile cannot hold.
    """
    if '"""' in template:
        raise _inexpressible('it writes """')
    lines = [
        f"FROM ./{gguf}",
        f'TEMPLATE """{template}"""',
        *(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops),
    ]
    sampling = {"temperature": 0}
    if getattr(generation, "do_sample", False):
        wanted = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p"}
        sampling = {
            name: value for theirs, name in wanted.items() if (value := getattr(generation, theirs, None)) is not None
        }
    sampling["repeat_penalty"] = getattr(generation, "repetition_penalty", None) or 1
    return "\n".join([*lines, *(f"PARAMETER {name} {value:g}" for name, value in sampling.items())]) + "\n"


def write_modelfile(tokenizer: PreTrainedTokenizerBase, folder: Path, gguf: str, facts: Facts) -> Proof:
    """Write the package's Modelfile where its chat template can be one; else the proof says why it was not made."""
    from transformers import GenerationConfig

    try:
        turns = derive(tokenizer)
        cases = [bare(messages) for messages in template_cases(tokenizer)]
        differs = first_difference(tokenizer, turns, cases)
        if differs:
            raise _inexpressible(f"its pieces give other text for {differs}")
        generation = GenerationConfig.from_pretrained(folder / WEIGHTS)
        stops = [str(tokenizer.convert_ids_to_tokens(number)) for number in as_list(generation.eos_token_id)]
        template = go_template(turns, leave_out=str(tokenizer.bos_token or "") if facts.adds_bos else "")
        text = modelfile(gguf, template, stops, generation)
    except ModelError as error:
        return Proof("ollama_template", None, str(error).removeprefix("ollama: "))
    files.write_text(folder / MODELFILE, text)
    cuts = trims(tokenizer)
    line = f"{len(cases)} conversations have equal text" + ("; it trims texts, Ollama does not" if cuts else "")
    measured = {"cases": len(cases), "takes_system": turns.system_prefix is not None, "trims": cuts}
    return Proof("ollama_template", passed=True, line=line, measured=measured)
