"""The smallest change that makes a plan fit, as the options to type. Knows no formula: it asks whether a wish fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from tunesmith.models.methods import Lora, Method, Qlora

if TYPE_CHECKING:
    from tunesmith.planning.memory import Wish

SHORTEST = 64
"""Tokens: a row cut shorter than this teaches little."""


def advise(wish: Wish, fits: Callable[[Wish], bool], *, recomputes: bool = True) -> str:
    """The first change that fits, in the order of how little it changes the result; empty when none does.

    Recompute activations (same result; where the method `recomputes`), smaller batches with more accumulation (same
    gradient), bf16, LoRA instead of trained weights, a base in four bits instead of LoRA's, shorter rows. Each one keeps
    those before it.
    """
    return next((" ".join(typed) for changed, typed in _changes(wish, recomputes) if fits(changed)), "")


def _changes(wish: Wish, recomputes: bool) -> Iterator[tuple[Wish, list[str]]]:
    """Wishes with the options that make them, from the least change on."""
    typed: list[str] = []
    if recomputes and wish.checkpointing is not True:
        wish = replace(wish, checkpointing=True)
        typed = ["--memory.checkpointing on"]
        yield wish, typed
    for smaller in _smaller_batches(wish):
        yield smaller, [*typed, _batch(smaller)]
    smallest = _one_row(wish)
    if smallest is not wish:
        typed = [*typed, _batch(smallest)]
    wish = smallest
    if wish.precision == "fp32":
        wish, typed = replace(wish, precision="bf16"), [*typed, "--precision bf16"]
        yield wish, typed
    plain = typed
    for smaller in _smaller_methods(wish.method):
        wish, typed = replace(wish, method=smaller), [*plain, f"--method.kind {smaller.kind}"]
        yield wish, typed
    while wish.tokens // 2 >= SHORTEST:
        shorter = wish.tokens // 2
        labelled = wish.labelled and min(wish.labelled, shorter * wish.rows)
        lengths = tuple(min(length, shorter) for length in wish.lengths)
        wish = replace(wish, tokens=shorter, labelled=labelled, shared=min(wish.shared, shorter), lengths=lengths)
        yield wish, [*typed, f"--cutoff {shorter}"]


def _smaller_methods(method: Method) -> list[Method]:
    """Methods that need less memory; only where the options given so far are options of theirs too."""
    given = method.model_fields_set - {"kind"}
    if method.kind in {"full", "freeze"} and not given:
        return [Lora(), Qlora()]
    if method.kind == "lora" and given <= set(Qlora.model_fields):
        return [Qlora(**method.model_dump(include=given))]
    return []


def _smaller_batches(wish: Wish) -> Iterator[Wish]:
    """The same rows a step in more batches: only divisors, so that the gradient stays the same."""
    for rows in range(wish.rows // wish.each - 1, 0, -1):
        if wish.rows_a_step % rows == 0:
            labelled = wish.labelled and -(-wish.labelled * rows * wish.each // wish.rows)
            often = wish.rows_a_step // rows
            longest = wish.lengths[-rows * wish.each :]
            yield replace(
                wish,
                rows=rows * wish.each,
                accumulate=often,
                labelled=labelled,
                step_rows=wish.rows_a_step,
                lengths=longest,
            )


def _one_row(wish: Wish) -> Wish:
    smaller = list(_smaller_batches(wish))
    return smaller[-1] if smaller else wish


def _batch(wish: Wish) -> str:
    return f"--batch.rows {wish.rows // wish.each} --batch.accumulate {wish.accumulate}"
