"""BLEU against nltk and sacrebleu on the same tokens, and the tokenizers against sacrebleu's."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tunesmith.core.examples import Conversation
from tunesmith.evaluation.answers import Answer, Question, tally
from tunesmith.evaluation.metrics.bleu import Bleu, bleu, count
from tunesmith.evaluation.tokens import choose, tokenize

REAL = Path(__file__).parents[3].parent / "shared" / "data" / "llamafactory"
WORDS = [*"abcdefghijklm", "Oswin", ",", "."]


def _random_corpus(seed: int, *, shortest: int, rows: int = 30) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Answers that share more or less with one to three references each."""
    rng = random.Random(seed)
    answers, references = [], []
    for _ in range(rows):
        truth = [rng.choice(WORDS) for _ in range(rng.randint(max(shortest, 1), 20))]
        references.append([_changed(truth, rng, shortest) for _ in range(rng.randint(1, 3))])
        answers.append(_changed(truth, rng, shortest))
    return answers, references


def _changed(tokens: list[str], rng: random.Random, shortest: int) -> list[str]:
    kept = [rng.choice(WORDS) if rng.random() < 0.3 else token for token in tokens if rng.random() < 0.9]
    return kept if len(kept) >= shortest else tokens


def _counts(answers: list[list[str]], references: list[list[list[str]]]) -> list[tuple[int, ...]]:
    return [count(answer, refs) for answer, refs in zip(answers, references, strict=True)]


def _real_texts(name: str, rows: int) -> list[str]:
    path = REAL / name
    if not path.is_file():
        pytest.skip(f"{path} is not here: real data lies beside the repository on some machines only")
    return [row["output"] for row in json.loads(path.read_text(encoding="utf-8"))[:rows]]


def _nltk(answers, references, order: int, smoothing: str) -> float:
    from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu

    method = getattr(SmoothingFunction(), {"none": "method0", "add-one": "method2", "exp": "method3"}[smoothing])
    return 100 * float(corpus_bleu(references, answers, weights=(1 / order,) * order, smoothing_function=method))


def _sacre(order: int, smoothing: str, tokenizer: str = "none", *, effective: bool = False):
    from sacrebleu.metrics import BLEU

    return BLEU(
        tokenize=tokenizer, smooth_method={"add-one": "add-k"}.get(smoothing, smoothing), max_ngram_order=order,
        effective_order=effective, force=True,
    )  # fmt: skip


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore:\\s*The hypothesis contains 0 counts")
@pytest.mark.parametrize("smoothing", ["none", "add-one", "exp"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_corpus_and_sentences_equal_nltk(order, smoothing):
    for seed in range(5):
        answers, references = _random_corpus(seed, shortest=4)
        counts = _counts(answers, references)
        assert bleu(tally(counts), order, smoothing) == pytest.approx(
            _nltk(answers, references, order, smoothing), abs=1e-9
        )
        for answer, refs, row in zip(answers, references, counts, strict=True):
            assert bleu(row, order, smoothing) == pytest.approx(_nltk([answer], [refs], order, smoothing), abs=1e-9)


@pytest.mark.peer
@pytest.mark.parametrize("smoothing", ["none", "add-one", "exp"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_corpus_and_sentences_equal_sacrebleu_also_for_short_and_empty_answers(order, smoothing):
    for seed in range(5):
        answers, references = _random_corpus(100 + seed, shortest=0)
        answers[3], answers[4], references[4] = [], ["Oswin"], [["Oswin"]]
        counts = _counts(answers, references)
        texts = [" ".join(answer) for answer in answers]
        columns = [[" ".join(refs[min(n, len(refs) - 1)]) for refs in references] for n in range(3)]
        peer = _sacre(order, smoothing)
        assert bleu(tally(counts), order, smoothing) == pytest.approx(peer.corpus_score(texts, columns).score, abs=1e-9)
        for effective in (False, True):
            peer = _sacre(order, smoothing, effective=effective)
            for text, refs, row in zip(texts, references, counts, strict=True):
                ours = bleu(row, order, smoothing, effective_order=effective)
                assert ours == pytest.approx(peer.sentence_score(text, [" ".join(r) for r in refs]).score, abs=1e-9)


@pytest.mark.peer
@pytest.mark.parametrize(("name", "tokenizer"), [("alpaca_en_demo.json", "13a"), ("alpaca_zh_demo.json", "zh"),
                                                 ("alpaca_zh_demo.json", "char"), ("alpaca_en_demo.json", "char")])  # fmt: skip
def test_real_texts_equal_sacrebleu(name, tokenizer):
    references = _real_texts(name, 200)
    rng = random.Random(7)
    answers = [text[: rng.randint(0, len(text))] + rng.choice(references)[:40] for text in references]
    metric = Bleu(tokenize=tokenizer)
    score = metric.score([_answer(a, r) for a, r in zip(answers, references, strict=True)])
    for order in (1, 2, 3, 4):
        peer = _sacre(order, "exp", tokenizer)
        assert score.values[f"bleu{order}"] == pytest.approx(peer.corpus_score(answers, [references]).score, abs=1e-9)
    sentence = _sacre(4, "exp", tokenizer, effective=True)
    for row, answer, reference in zip(score.rows, answers, references, strict=True):
        assert row["bleu4"] == pytest.approx(sentence.sentence_score(answer, [reference]).score, abs=1e-9)


@pytest.mark.peer
@pytest.mark.parametrize("tokenizer", ["13a", "zh", "char"])
def test_every_character_is_split_as_sacrebleu_splits_it(tokenizer):
    from sacrebleu.metrics.bleu import _get_tokenizer

    theirs = _get_tokenizer(tokenizer)()
    points = [*range(1, 0xD800), *range(0xE000, 0x10000), *range(0x1F300, 0x1F700), *range(0x20000, 0x20040)]
    for start in range(0, len(points), 64):
        for pattern in ("a{}b ", "1{}2 ", "{}. "):
            text = "".join(pattern.format(chr(point)) for point in points[start : start + 64])
            assert tokenize(text, tokenizer) == theirs(text.rstrip()).split(), hex(points[start])


def test_papineni_clips_the_famous_the():
    the = ["the"] * 7
    references = [tokenize("the cat is on the mat", "13a"), tokenize("there is a cat on the mat", "13a")]
    assert bleu(count(the, references), 1) == pytest.approx(100 * 2 / 7)


def test_brevity_penalty_by_hand():
    counts = count(["the", "kettle", "is"], [["the", "kettle", "is", "hot", "now"]])
    assert bleu(counts, 1) == pytest.approx(100 * 2.718281828459045 ** (1 - 5 / 3))


def test_a_right_one_word_answer_is_a_right_row():
    score = Bleu().score([_answer("Oswin", "Oswin")])
    assert score.rows[0]["bleu4"] == 100


def test_auto_goes_by_the_reference():
    assert choose(["My name is Oswin."]) == "13a"
    assert choose(["我叫奥斯温。"]) == "zh"
    score = Bleu().score([_answer("我叫奥斯温。", "我叫奥斯温。"), _answer("It is hot.", "It is hot.")])
    assert "tok:13a+zh" in score.signature
    assert score.values["bleu4"] == pytest.approx(100)


def _answer(text: str, reference: str) -> Answer:
    return Answer(Question("x:1", (), reference, (), Conversation((), "x:1")), text, "stop")
