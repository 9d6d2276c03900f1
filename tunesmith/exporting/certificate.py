"""The proofs that a package behaves like the model that was trained: what was measured, and whether it suffices."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunesmith.data.render import render_text, token_ids
from tunesmith.engines.contract import Reply, Request, Sampling, complete
from tunesmith.exporting.gguf import Facts, read_facts
from tunesmith.exporting.prompts import question
from tunesmith.models.load import Found

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from tunesmith.core.examples import Conversation, Message
    from tunesmith.exporting.greedy import Compared
    from tunesmith.exporting.merge import Precision

LARGEST = 1e-3
"""Largest difference of two fp32 logits: merging changes the order of additions, nothing else."""
DIVERGENCE = {"fp32": 1e-6, "bf16": 0.02, "fp16": 0.002}
"""Largest mean KL divergence in nats a token, by the precision in which the weights were saved."""


@dataclass(frozen=True, slots=True)
class Proof:
    """One property of a package: whether it holds, in one line and in numbers. `passed` is None where it was not made."""

    name: str
    passed: bool | None
    line: str
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """`true`, `false` or `not made`."""
        return "not made" if self.passed is None else str(self.passed).lower()


def merged_logits(compared: Sequence[Compared], precision: Precision) -> Proof:
    """Base with adapter against the saved weights: the same logits, both computed in fp32.

    Passes when the mean KL divergence is within DIVERGENCE and, for weights saved in fp32, no logit differs by more
    than LARGEST.
    """
    tokens = sum(one.tokens for one in compared)
    largest = max(one.largest for one in compared)
    divergence = sum(one.divergence for one in compared) / tokens
    limit = LARGEST if precision == "fp32" else None
    passed = divergence <= DIVERGENCE[precision] and (limit is None or largest <= limit)
    line = f"largest difference {largest:.2g}, mean KL {divergence:.2g} over {tokens} tokens ({precision})"
    return Proof("merged_logits", passed, line, {
        "largest_difference": largest, "largest_allowed": limit, "mean_kl_nats": divergence,
        "mean_kl_allowed": DIVERGENCE[precision], "tokens": tokens, "precision": precision,
    })  # fmt: skip


def merged_answers(compared: Sequence[Compared], precision: Precision, agreement: float) -> Proof:
    """Base with adapter against the saved weights: the same greedy answers.

    A token is the same when the merged model, shown the answer so far, chooses it too; that holds for all tokens of an
    answer exactly when both answers are the same.
    """
    differing = {number: one.differs_at for number, one in enumerate(compared) if one.differs_at is not None}
    needed = 1.0 if precision == "fp32" else agreement
    equal = len(compared) - len(differing)
    return Proof("merged_answers", equal >= needed * len(compared), f"{equal} of {len(compared)} greedy answers equal", {
        "equal": equal, "asked": len(compared), "share_needed": needed, "ties": sum(one.ties for one in compared),
        "differs_at_token": differing,
    })  # fmt: skip


@dataclass(frozen=True, slots=True)
class Interview:
    """What llama.cpp says of the GGUF file: its tokens of prompts and rows, and its answers."""

    facts: Facts
    prompts: list[list[int]]
    """Ids of every prompt as a chat request feeds them, bos put before where the file says so."""
    rows: list[list[int]]
    """Ids of every whole training text."""
    replies: list[Reply]


def interview(
    gguf: Path, cases: Sequence[Sequence[Message]], texts: Sequence[str], asked: Sequence[Sequence[Message]], *,
    tokens: int, context: int,
) -> Interview:  # fmt: skip
    """Load the GGUF file in llama.cpp; render and tokenize `cases`, tokenize `texts`, answer `asked` greedily.

    Raises ModelError when llama.cpp cannot load the file.
    """
    from tunesmith.engines.llama_cpp import LlamaCpp

    facts = read_facts(gguf)
    bos = [facts.bos] if facts.adds_bos and facts.bos is not None else []

    async def ask() -> Interview:
        engine = LlamaCpp(context=context, slots=1, reuse_prompt=False).open(Found(gguf.stem, gguf.parent, gguf=gguf))
        try:
            prompts = [bos + engine.token_ids(engine.render(messages)) for messages in cases]
            rows = [engine.token_ids(text) for text in texts]
            sampling = Sampling(max_tokens=tokens)
            replies = [await complete(engine, Request(tuple(messages), sampling=sampling)) for messages in asked]
        finally:
            await engine.close()
        return Interview(facts, prompts, rows, replies)

    return asyncio.run(ask())


def template_tokens(
    tokenizer: PreTrainedTokenizerBase,
    cases: Sequence[Sequence[Message]],
    rows: Sequence[Conversation],
    heard: Interview,
) -> Proof:
    """The chat template through llama.cpp gives the ids of the training render: prompts, whole rows, counted prompts."""
    differing: list[dict[str, Any]] = []

    def check(what: str, expected: Sequence[int], got: Sequence[int]) -> None:
        if list(expected) != list(got):
            place = next(
                (n for n, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), min(len(expected), len(got))
            )
            near = {"trained": list(expected[place : place + 4]), "gguf": list(got[place : place + 4])}
            text = tokenizer.decode(list(expected[max(0, place - 4) : place + 4]))
            differing.append({"case": what, "token": place, "near": near, "text": text})

    for messages, got in zip(cases, heard.prompts, strict=True):
        expected = token_ids(tokenizer, render_text(tokenizer, messages, generation_prompt=True))
        check(" + ".join(message.role for message in messages), expected, got)
    for row, got in zip(rows, heard.rows, strict=True):
        check(row.source, token_ids(tokenizer, render_text(tokenizer, row.messages)), got)
    for row, reply in zip(rows, heard.replies, strict=True):  # a second bos would show here
        expected = token_ids(tokenizer, render_text(tokenizer, question(row), generation_prompt=True))
        if len(expected) != reply.prompt_tokens:
            differing.append({"case": f"{row.source} as asked", "trained": len(expected), "gguf": reply.prompt_tokens})
    total = len(cases) + len(rows)
    line = f"{total - len({one['case'] for one in differing})} of {total} renders have equal token ids"
    if not differing:
        line = f"{len(cases)} prompts and {len(rows)} rows have equal token ids"
    measured = {"prompts": len(cases), "rows": len(rows), "differing": differing, "pre_tokenizer": heard.facts.pre}
    return Proof("template_tokens", not differing, line, measured)


def gguf_answers(merged: Sequence[str], heard: Interview, agreement: float) -> Proof:
    """Greedy answers of llama.cpp with the GGUF file against those of the merged weights."""
    pairs = list(zip(merged, (reply.text for reply in heard.replies), strict=True))
    differing = [
        {"prompt": number, "equal_characters": _common(ours.strip(), theirs.strip()), "merged": ours, "gguf": theirs}
        for number, (ours, theirs) in enumerate(pairs)
        if ours.strip() != theirs.strip()
    ]
    equal = len(pairs) - len(differing)
    return Proof("gguf_answers", equal >= agreement * len(pairs), f"{equal} of {len(pairs)} greedy answers equal", {
        "equal": equal, "asked": len(pairs), "share_needed": agreement, "differing": differing,
    })  # fmt: skip


def end_tokens(
    end: int | None, generation: Sequence[int], facts: Facts | None, tokenizer: PreTrainedTokenizerBase
) -> Proof:
    """The token that training put behind every answer is one at which each runtime stops."""
    measured: dict[str, Any] = {"trained": end, "generation_config": list(generation)}
    if end is None:
        return Proof(
            "end_tokens", passed=False, line="the chat template ends no answer with a special token", measured=measured
        )
    places = {"generation_config": generation}
    if facts:
        places["gguf"] = facts.ends
        measured["gguf"] = list(facts.ends)
    missing = [name for name, ids in places.items() if end not in ids]
    text = tokenizer.convert_ids_to_tokens(end)
    line = f"{text} ({end}) " + (
        f"is missing in {' and '.join(missing)}" if missing else f"stops in {' and '.join(places)}"
    )
    return Proof("end_tokens", not missing, line, {**measured, "text": text})


def _common(ours: str, theirs: str) -> int:
    return next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
