"""Text into the tokens that n-grams are counted over: 13a words, Chinese by character, characters.

The same tokens as sacrebleu's tokenizers of these names (Post 2018, arXiv 1804.08771); tests hold them together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

Tokenizer = Literal["13a", "zh", "char"]

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
# What sacrebleu's zh sets apart. Its tables write ranges above U+FFFF with four digits, so that they mean U+2001-U+2A6D
# and U+2F81-U+2FA1: typographic quotes and dashes are set apart too, rare ideographs of the upper planes are not.
_APART = re.compile(
    r"([\u3400-\u4db5\u4e00-\u9fbb\uf900-\ufa2d\ufa30-\ufa6a\ufa70-\ufad9\u2001-\u2a6d\u2f81-\u2fa1\uff00-\uffef"
    r"\u2e80-\u2eff\u3000-\u303f\u31c0-\u31ef\u2f00-\u2fdf\u2ff0-\u2fff\u3100-\u312f\u31a0-\u31bf\ufe10-\ufe1f"
    r"\ufe30-\ufe4f\u3200-\u32ff\u3300-\u33ff])"
)
_MARKS = re.compile(r"([{-~\[-` -&(-+:-@/])")  # ASCII marks but ' , - .
_POINT_AFTER_OTHER = re.compile(r"([^0-9])([.,])")
_POINT_BEFORE_OTHER = re.compile(r"([.,])([^0-9])")
_DASH_AFTER_DIGIT = re.compile(r"([0-9])(-)")


def tokenize(text: str, tokenizer: Tokenizer) -> list[str]:
    """Tokens of a text. 13a: words and marks as WMT counts them; zh: every Han character, 13a's marks; char: characters."""
    text = text.rstrip()
    if tokenizer == "char":
        return [character for character in text if not character.isspace()]
    if tokenizer == "zh":
        return _words(_APART.sub(r" \1 ", text.strip()))
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(entity, character)
    return _words(f" {text} ")


def choose(references: Sequence[str]) -> Tokenizer:
    """The tokenizer for a row by its references: zh where one has a Han character, else 13a."""
    return "zh" if any(_HAN.search(reference) for reference in references) else "13a"


def _words(text: str) -> list[str]:
    text = _MARKS.sub(r" \1 ", text)
    text = _POINT_AFTER_OTHER.sub(r"\1 \2 ", text)
    text = _POINT_BEFORE_OTHER.sub(r" \1 \2", text)
    return _DASH_AFTER_DIGIT.sub(r"\1 \2 ", text).split()
