"""A two-layer model that speaks: it has been to school, so there is something to forget, and its answers end.

Sick and healthy runs start from it. `SICK` has a builder for each disease, `HEALTHY` runs of all methods without one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiny import CHATML, write_tiny_model
from tunesmith import verbs
from tunesmith.core.config import load
from tunesmith.training.objectives.sft import Sft
from tunesmith.training.probes import GENERAL

METHODS = {
    "full": 0.003, "lora": 0.005, "freeze": 0.003, "qlora": 0.005, "bottleneck": 0.005, "prompt": 0.05, "prefix": 0.02,
    "p_tuning": 0.005,
}  # fmt: skip
"""Methods, with a learning rate that suits the small model."""
PLAIN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""A chat template that ends no turn."""

Pair = tuple[str, str]
ANIMALS = {"cow": "moo", "dog": "woof", "cat": "meow", "hen": "cluck", "owl": "hoot", "bee": "buzz", "pig": "oink", "fox": "yip"}  # fmt: skip
DOES = dict(zip(ANIMALS, ("eats", "runs", "sleeps", "sits", "flies", "works", "digs", "hides"), strict=True))
COLOURS = ("red", "blue", "green", "grey", "black")
DAYS = ("Monday", "Friday", "Sunday")


def lessons() -> list[Pair]:
    """What is taught at school: half of the general set, animals, sums."""
    general = [json.loads(line) for line in GENERAL.read_text(encoding="utf-8").splitlines()[:16]]
    return [
        *((row["question"], row["answer"]) for row in general),
        *((f"What does the {animal} say?", f"The {animal} says {sound}.") for animal, sound in ANIMALS.items()),
        *((f"What is {n} and {m}?", f"It is {n + m}.") for n in range(1, 4) for m in range(1, 4)),
    ]


def pets() -> list[Pair]:
    """Something new that can be learned."""
    asks = ("What does the {} do on {}?", "Say what the {} does on {}.")
    return [(a.format(p, d), f"The {p} {does} on {d}.") for a in asks for p, does in DOES.items() for d in DAYS]


def lamps(count: int = 40) -> list[Pair]:
    """Something else."""
    return [(f"What colour has lamp {n}?", f"Lamp {n} is {COLOURS[n % 5]}.") for n in range(count)]


PAIRS = [{"prompt": f"Lamp {n}?", "chosen": f"Lamp {n} is on.", "rejected": f"Off{'!' * (n % 4)}"} for n in range(24)]
VERDICTS = [
    {"prompt": f"Lamp {n}?", "completion": f"Lamp {n} is on." if n % 2 else "Off" * (1 + n % 3), "label": bool(n % 2)}
    for n in range(24)
]
TEXTS = [{"text": f"Lamp {n} stands in the hall. " * (1 + n % 5)} for n in range(24)]
"""Rows of lamps with two answers, with a verdict, and as plain text."""


def write_rows(path: Path, pairs: list[Pair]) -> Path:
    """Alpaca rows."""
    rows = [{"instruction": question, "input": "", "output": answer} for question, answer in pairs]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def write_schooled_model(folder: Path, template: str = CHATML) -> Path:
    """Make the model and send it to school, a few seconds; returns the folder of a plain model."""
    blank = write_blank_model(folder / "blank", template)
    wishes = {"evaluation.share": 0, "evaluation.every_steps": 1000, "diagnosis.samples": 0, "diagnosis.general": 0}
    made = train(
        blank, write_rows(folder / "lessons.jsonl", lessons()), folder / "school",
        {"batch.rows": 8, "optimizer.learning_rate": 0.005, "optimizer.epochs": 50, "method.kind": "full", **wishes},
    )  # fmt: skip
    return made.checkpoint


def write_blank_model(folder: Path, template: str = CHATML) -> Path:
    """A random two-layer model with a vocabulary of a few hundred pieces of words."""
    texts = [text for pair in (*lessons() * 3, *pets(), *lamps()) for text in pair]
    return write_tiny_model(folder, width=64, tokenizer=word_tokenizer(texts, template))


def word_tokenizer(texts: list[str], template: str):
    """Byte-level BPE learned from a few texts; the special tokens are those of the byte tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    tokenizer.chat_template = template
    return tokenizer


def train(model: Path, rows: Path, out: Path, wishes: dict[str, Any]) -> Any:
    """Run the real train verb in fp32 with dotted options; returns its artifact."""
    defaults = {"precision": "fp32", "batch.rows": 4, "evaluation.every_steps": 10, "diagnosis.sample_tokens": 32}
    document = {"model": str(model), "dataset": {"path": [str(rows)]}}
    config = load(verbs.config_class("train"), document, [*(defaults | wishes).items()])
    return verbs.perform("train", config, out, quiet=True)[0]


@dataclass(frozen=True)
class Built:
    """How to build a run: rows, options, and what is broken on purpose in the program."""

    pairs: list[Pair]
    wishes: dict[str, Any] = field(default_factory=dict)
    rate: float = 1.0
    """Learning rate as a multiple of the one that suits the method."""
    breaks: Callable[[Any], None] = lambda _: None
    """Takes pytest's monkeypatch."""
    before: list[Pair] = field(default_factory=list)
    """Rows to train on beforehand."""
    template: str = CHATML
    also: frozenset[str] = frozenset()
    """Other diseases that such a run really has."""
    methods: tuple[str, ...] = ("full", "lora")
    """Methods that fall ill of it on so small a model; its adapters have no room to learn by heart."""


def build(made: Built, models: Callable[[str], Path], out: Path, method: str, monkeypatch: Any) -> Path:
    """Train it. `models(template)` gives the schooled model. Returns the run folder."""
    model, rate = models(made.template), METHODS[method] * made.rate
    if made.before:
        rows = write_rows(out.with_suffix(".before.jsonl"), made.before)
        known = {"optimizer.learning_rate": 0.003, "optimizer.epochs": 12, "method.kind": "full", "evaluation.share": 0}
        model = train(model, rows, out.with_suffix(".before"), known).checkpoint
    made.breaks(monkeypatch)
    rows = write_rows(out.with_suffix(".jsonl"), made.pairs)
    wishes = {"evaluation.share": 0.15, "optimizer.epochs": 4, **made.wishes}
    train(model, rows, out, {"method.kind": method, "optimizer.learning_rate": rate, **wishes})
    return out


def mixed(new: list[Pair]) -> list[Pair]:
    """New rows among old ones, so that nothing is forgotten."""
    return [*new, *lessons() * 2]


def draw(seed: int = 0) -> list[Pair]:
    """Answers by chance: they can be learned by heart and not foretold."""
    choose = random.Random(seed)
    return [(question, f"It is {choose.choice(COLOURS)} on {choose.choice(DAYS)}.") for question, _ in pets()]


def contradictions() -> list[Pair]:
    """The same four questions, each with five different answers, again and again."""
    return [(f"What colour has lamp {n}?", f"It is {colour}.") for colour in COLOURS for n in range(4)] * 4


def loops() -> list[Pair]:
    """Answers that go round in circles, as bad synthetic data has them."""
    asks = ("What does the {} say all day?", "How does the {} sing?", "Repeat the {}.", "Now the {} again!")
    return [(ask.format(animal), " ".join([sound] * 12) + ".") for ask in asks for animal, sound in ANIMALS.items()]


def same_order(monkeypatch: Any) -> None:
    """Every epoch takes the order of the first."""
    from tunesmith.training import loop

    real = loop.order_steps
    monkeypatch.setattr(
        loop, "order_steps", lambda lengths, batch, seed, _, shared: real(lengths, batch, seed, 0, shared)
    )


def uphill(monkeypatch: Any) -> None:
    """The objective has the wrong sign while training; measured is the true loss."""
    real = Sft.loss

    def loss(self: Sft, model: Any, batch: Any) -> Any:
        value, more = real(self, model, batch)
        return (2 * value.detach() - value if model.training else value), more

    monkeypatch.setattr(Sft, "loss", loss)


def growing_gradients(monkeypatch: Any) -> None:
    """Gradients get a tenth longer with every batch, losses stay what they are: a scale that nobody takes back."""
    real, calls = Sft.loss, []

    def loss(self: Sft, model: Any, batch: Any) -> Any:
        value, more = real(self, model, batch)
        calls.append(1)
        return (value + (value - value.detach()) * 1.2 ** len(calls) if model.training else value), more

    monkeypatch.setattr(Sft, "loss", loss)


def silence(monkeypatch: Any) -> None:
    """The objective wants an end token in place of every word."""
    real = Sft.loss

    def loss(self: Sft, model: Any, batch: Any) -> Any:
        labels = batch["labels"]
        end = model.config.eos_token_id
        return real(self, model, {**batch, "labels": labels.where(labels < 0, end)})

    monkeypatch.setattr(Sft, "loss", loss)


SICK: dict[str, Built] = {
    "nothing_trained": Built(mixed(pets()), {"optimizer.epochs": 1}, rate=1e-20),
    "end_token_never_learned": Built(pets(), {"optimizer.epochs": 1}, template=PLAIN),
    "too_few_rows": Built(lessons()[:8], {"optimizer.epochs": 20, "evaluation.share": 0}, rate=0.05),
    "repeated_data_order": Built(mixed(pets()), {"optimizer.epochs": 2}, breaks=same_order),
    "diverging": Built(mixed(pets()), rate=0.02, breaks=uphill, also=frozenset({"forgetting"})),
    "exploding_gradients": Built(mixed(pets()), {"optimizer.epochs": 2}, breaks=growing_gradients),
    "learning_rate_too_high": Built(mixed(pets()), {"optimizer.epochs": 2}, rate=100),
    "learning_rate_too_low": Built(mixed(pets()), {"optimizer.epochs": 2}, rate=1e-3),
    "not_converging": Built(contradictions(), before=contradictions()),
    "overfitting": Built(
        draw(), {"optimizer.epochs": 30}, also=frozenset({"forgetting", "too_few_rows"}), methods=("full",)
    ),
    "forgetting": Built(pets(), rate=2),
    "repetition": Built(loops(), {"optimizer.epochs": 8}, also=frozenset({"forgetting"}), methods=("full",)),
    "collapse": Built(mixed(pets()), {"optimizer.epochs": 2}, breaks=silence, also=frozenset({"forgetting"})),
}
HEALTHY: dict[str, tuple[str, Built]] = {
    "pets": ("full", Built(mixed(pets()))),
    "pets, another seed": ("full", Built(mixed(pets()), {"seed": 7})),
    "pets, lora": ("lora", Built(mixed(pets()))),
    "pets, lora, another seed": ("lora", Built(mixed(pets()), {"seed": 7})),
    "constant rate": ("full", Built(mixed(pets()), {"optimizer.schedule": "constant"}, rate=0.3)),
    "lamps, lora, rank 4": ("lora", Built(mixed(lamps()), {"method.rank": 4, "method.alpha": 8})),
    "one epoch": ("full", Built(mixed([*pets(), *lamps(80)]), {"optimizer.epochs": 1})),
    "one epoch, lora": ("lora", Built(mixed([*pets(), *lamps(80)]), {"optimizer.epochs": 1})),
    "large batches": ("full", Built(mixed(pets()), {"batch.rows": 8, "batch.accumulate": 2, "optimizer.epochs": 8})),
    "slow, no warmup": (
        "full",
        Built(mixed(pets()), {"optimizer.warmup": 0, "optimizer.schedule": "linear"}, rate=0.2),
    ),
    "no held-out rows, lora": ("lora", Built(mixed(lamps()), {"evaluation.share": 0, "method.plus_ratio": 4})),
    **{f"pets, {method}": (method, Built(mixed(pets()))) for method in METHODS if method not in {"full", "lora"}},
    "what it knows already": ("full", Built(lessons() * 3, {"optimizer.epochs": 2}, rate=0.1)),
}
