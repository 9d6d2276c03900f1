"""Questions and answers made by hand, and an engine that answers from a dictionary."""

from __future__ import annotations

import pytest

from tunesmith.core.examples import Conversation, Message
from tunesmith.engines.contract import Piece
from tunesmith.evaluation.answers import Answer
from tunesmith.evaluation.suite import pose


def make_row(question, reference="ref", expect=(), source="rows.jsonl:1"):
    turns = [Message("user", question)] + ([Message("assistant", reference)] if reference is not None else [])
    return Conversation(tuple(turns), source, expect=expect)


def make_answer(text, reference="ref", expect=(), *, question="q?", **facts):
    return Answer(pose([make_row(question, reference, expect)], [])[0], text, **{"finish": "stop", **facts})


class Parrot:
    """An engine that knows answers by heart and says `?` to everything else."""

    name = "parrot"

    def __init__(self, known, at_once=3):
        self.model, self.at_once, self.known = "parrot", at_once, known
        self.asked, self.closed, self.sampled = [], 0, set()

    async def stream(self, request):
        self.asked.append(request.messages)
        self.sampled.add(request.sampling)
        words = self.known.get(request.messages[-1].content, "?").split(" ")
        for place, word in enumerate(words):
            yield Piece(word if place == 0 else f" {word}")
        yield Piece("", "stop", 1, len(words))

    async def alive(self):
        return True

    async def close(self):
        self.closed += 1


@pytest.fixture
def row():
    return make_row


@pytest.fixture
def answered():
    return make_answer


@pytest.fixture
def parrot():
    return Parrot
