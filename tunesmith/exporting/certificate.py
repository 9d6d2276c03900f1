"""The proofs that a package behaves like the model that was trained: what was measured, and whether it suffices."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.data.render import render_text, token_ids
from tunesmith.engines.contract import Reply, Request, Sampling, complete
from tunesmith.exporting.gguf import Facts, read_facts
from tunesmith.exporting.greedy import unlike
from tunesmith.models.load import Found

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from tunesmith.core.examples import Conversation, Message
    from tunesmith.exporting.greedy import Compared, Recorded
    from tunesmith.exporting.merge import Precision

LARGEST = 1e-3
"""Largest difference of two fp32 logits: merging changes the order of additions, nothing else."""
DIVERGENCE = {"fp32": 1e-6, "bf16": 0.02, "fp16": 0.002}
"""Largest mean KL divergence in nats a token, by the precision in which the weights were saved."""
UNDECIDED = {"fp32": 2 * LARGEST, "f32": 0.05, "fp16": 0.05, "f16": 0.05, "bf16": 0.5, "q8_0": 0.75}
"""Lead in nats of one token over another that rounding can turn around, by how weights are stored (docs/export.md)."""

How = Literal["merged", "saved"]
"""Whether an adapter went into the weights or was saved beside them; the first word of the proofs' names."""


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


def merged_logits(compared: Sequence[Compared], precision: Precision, how: How = "merged") -> Proof:
    """What was trained against what was saved (one model, or base and adapter apart): the same logits, both in fp32.

    Passes when the mean KL divergence is within DIVERGENCE and, for weights saved in fp32, no logit differs by more
    than LARGEST.
    """
    tokens = sum(one.tokens for one in compared)
    largest = max(one.largest for one in compared)
    divergence = sum(one.divergence for one in compared) / tokens
    limit = LARGEST if precision == "fp32" else None
    passed = divergence <= DIVERGENCE[precision] and (limit is None or largest <= limit)
    line = f"largest difference {largest:.2g}, mean KL {divergence:.2g} over {tokens} tokens ({precision})"
    return Proof(f"{how}_logits", passed, line, {
        "largest_difference": largest, "largest_allowed": limit, "mean_kl_nats": divergence,
        "mean_kl_allowed": DIVERGENCE[precision], "tokens": tokens, "precision": precision,
    })  # fmt: skip


def merged_answers(compared: Sequence[Compared], precision: Precision, agreement: float, how: How = "merged") -> Proof:
    """What was trained against what was saved: the same greedy answers.

    A token is the same when the saved model, shown the answer so far, chooses it too; that holds for all tokens of an
    answer exactly when both answers are the same.
    """
    differing = {number: one.differs_at for number, one in enumerate(compared) if one.differs_at is not None}
    needed = 1.0 if precision == "fp32" else agreement
    equal = len(compared) - len(differing)
    return Proof(f"{how}_answers", equal >= needed * len(compared), f"{equal} of {len(compared)} greedy answers equal", {
        "equal": equal, "asked": len(compared), "share_needed": needed, "ties": sum(one.ties for one in compared),
        "differs_at_token": differing,
    })  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reading:
    """One reader of rendered conversations: ids of every prompt, and of every whole row."""

    prompts: list[list[int]]
    rows: list[list[int]]


@dataclass(frozen=True, slots=True)
class Interview:
    """What llama.cpp says of the GGUF file: its tokens of prompts and rows, and its answers."""

    facts: Facts
    read: Reading
    """Prompts as a chat request feeds them: bos put before where the file says so."""
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
        return Interview(facts, Reading(prompts, rows), replies)

    return asyncio.run(ask())


def read_by(
    tokenizer: PreTrainedTokenizerBase, cases: Sequence[Sequence[Message]], rows: Sequence[Conversation]
) -> Reading:
    """How a tokenizer of transformers reads the prompts of `cases` and the whole of `rows`."""
    return Reading(
        [token_ids(tokenizer, render_text(tokenizer, messages, generation_prompt=True)) for messages in cases],
        [token_ids(tokenizer, render_text(tokenizer, row.messages)) for row in rows],
    )


def template_tokens(trained: Reading, readers: Mapping[str, Reading], names: Sequence[str]) -> Proof:
    """Every reader of the package (its tokenizer, llama.cpp) gives the ids of the training render.

    `names` says what each prompt and each row is, in their order.
    """
    differing: list[dict[str, Any]] = []
    for reader, read in readers.items():
        pairs = zip(names, [*trained.prompts, *trained.rows], [*read.prompts, *read.rows], strict=True)
        differing += [
            {"reader": reader, "case": name, **_first(ours, theirs)} for name, ours, theirs in pairs if ours != theirs
        ]
    who, all_of = " and ".join(readers), f"{len(trained.prompts)} prompts and {len(trained.rows)} rows"
    line = f"{all_of} have the trained token ids in {who}"
    if differing:
        line = f"{len(differing)} of {len(names) * len(readers)} renders differ in {who}, first: {differing[0]['case']}"
    return Proof(
        "template_tokens", not differing, line, {"readers": list(readers), "cases": len(names), "differing": differing}
    )


def _first(ours: list[int], theirs: list[int]) -> dict[str, Any]:
    place = _common(ours, theirs)
    return {"token": place, "trained": ours[place : place + 6], "read": theirs[place : place + 6]}


def gguf_answers(
    merged: Sequence[Recorded], heard: Interview, tokenizer: PreTrainedTokenizerBase, *, weights: str, agreement: float
) -> Proof:
    """Greedy answers of llama.cpp with the GGUF file against those of the merged weights.

    An answer agrees when it is equal, or first differs where the merged model prefers its own token by no more than
    UNDECIDED nats. Fails also when llama.cpp was fed a prompt of another length than training's (a second bos).
    """
    found = [unlike(one, reply.text, reply.finish, tokenizer) for one, reply in zip(merged, heard.replies, strict=True)]
    differing = [{"question": number, **asdict(one)} for number, one in enumerate(found) if one]
    decided = [one for one in differing if one["lead_nats"] > UNDECIDED[weights]]
    lengths = [[len(one.prompt_ids), reply.prompt_tokens] for one, reply in zip(merged, heard.replies, strict=True)]
    wrong = [pair for pair in lengths if pair[0] != pair[1]]
    asked = len(merged)
    line = f"{asked - len(differing)} of {asked} greedy answers equal"
    if differing:
        widest = max(one["lead_nats"] for one in differing)
        line += f", {len(differing) - len(decided)} part where the model is undecided (lead at most {widest:.2f} nats)"
    if wrong:
        line += f", {len(wrong)} prompts of another length"
    passed = asked - len(decided) >= agreement * asked and not wrong
    return Proof("gguf_answers", passed, line, {
        "equal": asked - len(differing), "agree": asked - len(decided), "asked": asked, "share_needed": agreement,
        "undecided_nats": UNDECIDED[weights], "differing": differing, "prompt_tokens_differ": wrong,
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


def _common(ours: Sequence[Any], theirs: Sequence[Any]) -> int:
    """Length of the beginning that two texts or lists share."""
    return next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
