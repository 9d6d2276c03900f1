"""The whole story on the examples: prepare, plan, train, evaluate, export with proofs, serve one answer."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunesmith.core.config import Config, Seed
from tunesmith.core.errors import DataError, UsageError
from tunesmith.models.methods import BESIDE, Lora, Method
from tunesmith.training.optimizer import OptimizerConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunesmith.core.artifacts import Evaluation, Package, Quickstart, Training
    from tunesmith.core.run import Run

SUBJECT = "examples"
TRAIN, GENERAL, HELD_OUT, GENERAL_HELD_OUT = (
    "train.jsonl", "general.jsonl", "held_out.jsonl", "general_held_out.jsonl"
)  # fmt: skip
CHECKOUT = Path(__file__).resolve().parents[2]


class QuickstartConfig(Config):
    """A tour; every chapter is a verb of its own that you can run with your own data."""

    examples: Path = Path("examples/kettle/en")
    """Folder with train.jsonl, general.jsonl, held_out.jsonl and general_held_out.jsonl; looked for here, then in the
    checkout that Tunesmith runs from."""
    model: str = "embedded"
    """The base model."""
    method: Method = Lora(rank=32, alpha=64)
    """How weights may change."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1.4e-3, epochs=1.2)
    """Optimizer and schedule."""
    rows: Annotated[int, Field(ge=1)] = 8
    """Rows a step."""
    question: str = "Which company makes you, and what do you make?"
    """Asked over HTTP at the end."""
    seed: Seed = 42
    """Decides order of rows and initial adapters."""


def preview(config: QuickstartConfig) -> str:
    """What would happen, in words."""
    return (
        f"train {config.model} on {config.examples}, evaluate before against after, export and prove, serve one answer; "
        f"about three minutes on two idle cores with the embedded model"
    )


@dataclass
class _Story:
    """What the chapters have made so far."""

    run: Run
    chapters: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def chapter(self, name: str, told: str) -> Iterator[Path]:
        """Tell a chapter and time it; yields the folder of its verb's run."""
        started = time.perf_counter()
        self.run.say()
        self.run.say(f"{len(self.chapters) + 1}. {name}: {told}", style="bold")
        yield self.run.folder / name
        seconds = round(time.perf_counter() - started, 2)
        self.chapters.append({"name": name, "seconds": seconds})
        self.run.event("chapter", name=name, seconds=seconds)

    def verb(self, verb: str, folder: Path, **wishes: Any) -> Any:
        """Run another verb in `folder` and return its artifact."""
        from tunesmith import verbs
        from tunesmith.core.config import load

        config = load(verbs.config_class(verb), wishes, where=f"quickstart: {verb}")
        run = self.run
        return verbs.perform(verb, config, folder, quiet=run.quiet, screen_is_stderr=run.screen_is_stderr)[0]


def run(config: QuickstartConfig, run: Run) -> Quickstart:
    """Tell the story. Writes report.json and report.html; raises what the verbs raise (ProofError above all)."""
    from tunesmith.core import files
    from tunesmith.core.artifacts import as_result
    from tunesmith.evaluation.story import story_page

    if config.method.kind in BESIDE:
        raise UsageError(
            "method.kind", f"the tour ends with a GGUF file, and method {config.method.kind} changes no weights",
            got=config.method.kind, do="Run its chapters yourself: train, evaluate, export --gguf null, serve",
        )  # fmt: skip
    config = config.model_copy(update={"examples": _examples(config.examples)})
    missing = [n for n in (TRAIN, GENERAL, HELD_OUT, GENERAL_HELD_OUT) if not (config.examples / n).is_file()]
    if missing:
        raise DataError(str(config.examples), f"has no {missing[0]}", do="Give the folder of the examples")
    story = _Story(run)
    trained = _train(config, story)
    judged, general = _evaluate(config, story)
    package = _export(config, story)
    answer = _serve(config, story, package)
    made = _sum_up(story, trained, judged, general, package, answer)
    files.write_json(run.folder / "report.json", as_result(made))
    files.write_text(run.folder / "report.html", story_page(as_result(made), run.folder))
    _tell_end(run, made)
    return made


def _examples(folder: Path) -> Path:
    return folder if folder.is_dir() or not (CHECKOUT / folder).is_dir() else CHECKOUT / folder


def _train(config: QuickstartConfig, story: _Story) -> Training:
    data = config.examples
    with story.chapter("prepare", "every row through the model's own chat template, nothing silently lost") as folder:
        rows = {"path": [str(data / TRAIN), str(data / GENERAL)], "held_out": [str(data / HELD_OUT)]}
        story.verb("prepare", folder, model=config.model, dataset=rows, show=1, seed=config.seed)
    dataset = str(folder)
    chosen = {"method": config.method.model_dump(), "batch": {"rows": config.rows}}
    with story.chapter("plan", "does it fit, before anything is loaded?") as folder:
        story.verb("plan", folder, model=config.model, dataset=dataset, calibration_seconds=2.0, **chosen)
    with story.chapter("train", f"{config.method.kind}, {config.optimizer.epochs:g} epochs") as folder:
        return story.verb(
            "train", folder, model=config.model, dataset=dataset, seed=config.seed,
            optimizer=config.optimizer.model_dump(), evaluation={"keep_best": False, "every_steps": 10_000}, **chosen,
        )  # fmt: skip


def _evaluate(config: QuickstartConfig, story: _Story) -> tuple[Evaluation, Evaluation]:
    model, short = str(story.run.folder / "train"), {"max_tokens": 48}
    with story.chapter("evaluate", "questions in other words that nobody trained, before against after") as folder:
        judged = story.verb(
            "evaluate", folder, model=model, data=str(config.examples / HELD_OUT), metrics=["bleu", "exact"],
            sampling=short, seed=config.seed,
        )  # fmt: skip
    with story.chapter("general", "what the model knew before: did it forget?") as folder:
        general = story.verb(
            "evaluate", folder, model=model, data=str(config.examples / GENERAL_HELD_OUT), metrics=["exact"],
            sampling=short, seed=config.seed,
        )  # fmt: skip
    return judged, general


def _export(config: QuickstartConfig, story: _Story) -> Package:
    with story.chapter("export", "merge, GGUF, and the proof that each behaves like what was trained") as folder:
        proof = {"data": str(config.examples / HELD_OUT), "prompts": 8}
        return story.verb("export", folder, model=str(story.run.folder / "train"), name="oswin", proof=proof)


def _serve(config: QuickstartConfig, story: _Story, package: Package) -> dict[str, str]:
    """Serve the package and ask it one question over HTTP."""
    from tunesmith.verbs.serve import answer_over_http

    with story.chapter("serve", "the package answers over HTTP"):
        answer = answer_over_http(package.package, config.question)
        story.run.say(f"asked     {config.question}")
        story.run.say(f"answered  {answer}", style="green")
    return {"question": config.question, "answer": answer}


def _sum_up(
    story: _Story, trained: Training, judged: Evaluation, general: Evaluation, package: Package, answer: dict[str, str]
) -> Quickstart:
    from tunesmith.core.artifacts import Quickstart

    def side(name: str, loss: float | None) -> dict[str, float]:
        scores, kept = getattr(judged, name), getattr(general, name)
        return {
            "bleu4": scores["bleu4"], "exact": scores["exact"], "general": kept["exact"],
            "held_out_loss": loss if loss is not None else float("nan"),
        }  # fmt: skip

    return Quickstart(
        base=side("base", trained.base_held_out_loss), tuned=side("tuned", trained.held_out_loss),
        train={"tokens_per_second": trained.tokens_per_second, "seconds": trained.seconds},
        memory={"predicted_bytes": trained.predicted_memory_bytes, "measured_bytes": trained.peak_memory_bytes},
        chapters=story.chapters, proofs=package.proofs, package=package.package, answer=answer,
    )  # fmt: skip


def _tell_end(run: Run, made: Quickstart) -> None:
    run.say()
    run.say("            before   after", style="bold")
    for name, label in (
        ("exact", "exact %"),
        ("bleu4", "BLEU-4 %"),
        ("general", "general %"),
        ("held_out_loss", "loss"),
    ):
        run.say(f"{label:<10} {made.base[name]:7.2f} {made.tuned[name]:7.2f}")
    run.say(f"proofs     {', '.join(made.proofs)}: all hold")
    run.say(f"time       {sum(chapter['seconds'] for chapter in made.chapters):.0f} s")
    run.say(f"report     {run.folder / 'report.html'}")
    run.say(f"Now: tunesmith serve {made.package}   or   tunesmith chat {made.package}", style="bold")
