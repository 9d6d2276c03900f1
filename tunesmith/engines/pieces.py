"""From tokens to text that is final: whole characters, nothing of a stop string. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# A character has at most 4 bytes, so at most 4 tokens. Where this many did not make one, none is coming: a model that
# writes no valid text is shown as it is, not held back to the end of its answer.
LONGEST_CHARACTER_TOKENS = 8


class StopCutter:
    """Holds back what may be the beginning of a stop string; what it gives out is final."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def take(self, text: str) -> str:
        """Add text; return what is now certain not to belong to a stop string."""
        if self.stopped:
            return ""
        self._held += text
        hits = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if hits:
            self.stopped = True
            return self._give(
                min(hits)[1]
            )  # the one that is whole first, so that the cut does not depend on the pieces
        return self._give(len(self._held) - max((self._overlap(stop) for stop in self._stops), default=0))

    def rest(self) -> str:
        """What was held back, once no more text comes; empty after a stop string."""
        return "" if self.stopped else self._give(len(self._held))

    def _give(self, length: int) -> str:
        given, self._held = self._held[:length], self._held[length:]
        return given

    def _overlap(self, stop: str) -> int:
        """Characters at the end of the held text that begin `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


class Detokenizer:
    """Decodes a growing list of tokens; gives out only whole characters, special tokens left out.

    Each decode begins at a token that was given out whole: the text of a token may depend on the one before it
    (sentencepiece drops a leading space), and decoding everything anew would cost the square of the length.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._begin, self._given = 0, 0

    def take(self, token: int) -> str:
        """Add a token; return the new text, empty while a character is not whole."""
        self._ids.append(token)
        text = self._new_text()
        is_partial = text.endswith("\ufffd") and len(self._ids) - self._given <= LONGEST_CHARACTER_TOKENS
        if not text or is_partial:
            return ""
        self._begin, self._given = self._given, len(self._ids)
        return text

    def rest(self) -> str:
        """The new text as it is, once no more tokens come."""
        text = self._new_text()
        self._begin = self._given = len(self._ids)
        return text

    def _new_text(self) -> str:
        old = self._decode(self._ids[self._begin : self._given])
        return self._decode(self._ids[self._begin :])[len(old) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
