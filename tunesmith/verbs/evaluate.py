"""Ask a tuned model and its base the same held-out questions and say, with intervals, which is better."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tunesmith.core.config import Config, Seed
from tunesmith.core.errors import DataError, UsageError
from tunesmith.data.formats import FormatName
from tunesmith.engines import EngineConfig
from tunesmith.engines.auto import Auto, is_address
from tunesmith.evaluation.metrics import Bleu, Exact, Metric, Perplexity

if TYPE_CHECKING:
    from pathlib import Path

    from tunesmith.core.artifacts import Evaluation
    from tunesmith.core.run import Run
    from tunesmith.evaluation.answers import Question
    from tunesmith.evaluation.suite import Sheet
    from tunesmith.models.load import Found

SUBJECT = "model"
NAMED_BY_THE_ENGINE = ("remote", "echo")  # engines to which a model is a name, not files


class HeldOut(Config):
    """Questions with their answers; a bare path or list of paths is short for `{path: ...}`."""

    path: tuple[str, ...] = Field(min_length=1)
    """Files of rows (json, jsonl, csv, tsv, parquet), or a prepared Dataset folder, whose held-out rows are taken."""
    format: FormatName = "auto"
    """Layout of the rows; auto looks at the first row and says what it saw."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names of your columns where they differ: {instruction: question, output: answer, expect: must}."""
    rows: Annotated[int, Field(ge=1)] | None = None
    """Take only this many rows from the start; null takes all."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        value = {"path": value} if isinstance(value, str | list | tuple) else value
        if isinstance(value, dict) and isinstance(value.get("path"), str):
            value = {**value, "path": [value["path"]]}
        return value


class SamplingConfig(Config):
    """How the models choose words; the same for both."""

    max_tokens: Annotated[int, Field(ge=1)] = 256
    """Longest answer in tokens; the report says how many answers were cut there."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """0 always takes the likeliest token (greedy); more gives more variety."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw only from the likeliest tokens that together have this probability; without effect when greedy."""


class EvaluateConfig(Config):
    """What to ask, whom, and how to score it."""

    model: str
    """The tuned model: a run, checkpoint, package, .gguf file, folder, embedded, hf:ID, ms:ID or a server's address."""
    base: str | None = "auto"
    """The model to compare with; auto takes the one that `model` was trained from where that is known, null none."""
    data: HeldOut
    """Held-out rows: conversations whose last assistant turn is the reference, with `expect` (texts of which a right
    answer contains every one; `a|b` for alternatives) where you have it."""
    metrics: tuple[Metric, ...] = (Bleu(), Exact(), Perplexity())
    """What to measure, each a word or a mapping: bleu {tokenize: auto | 13a | zh | char, smoothing: exp | none |
    add-one}, exact {mode: contains | equal}, perplexity."""
    engine: EngineConfig = Auto()
    """What generates the answers."""
    sampling: SamplingConfig = SamplingConfig()
    """How the models choose words."""
    reuse: bool = True
    """Take the base model's answers from the cache where the same weights were asked the same questions in the same way;
    the tuned model always answers anew."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the weights that perplexity is measured with."""
    resamples: Annotated[int, Field(ge=100)] = 2000
    """Times the rows are drawn anew for the intervals of the differences."""
    seed: Seed = 42
    """Decides what is sampled (where temperature is not 0) and which rows are drawn for the intervals."""

    @field_validator("metrics", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value

    @field_validator("metrics")
    @classmethod
    def _once(cls, metrics: tuple[Any, ...]) -> tuple[Any, ...]:
        kinds = [metric.kind for metric in metrics]
        if len(kinds) != len(set(kinds)) or not kinds:
            raise ValueError("must name one metric or more, each once")
        return metrics


def preview(config: EvaluateConfig) -> str:
    """What would happen, in words."""
    base = {"auto": "the model it was trained from, where known", None: "no other model"}.get(config.base, config.base)
    rows = f"the first {config.data.rows} rows" if config.data.rows else "all rows"
    return (
        f"ask {config.model} and compare with {base}: {rows} of {', '.join(config.data.path)}, "
        f"{_sampling_words(config)}, engine {config.engine.kind}, measure {', '.join(m.kind for m in config.metrics)}"
    )


def run(config: EvaluateConfig, run: Run) -> Evaluation:
    """Ask, score, compare, report into `<run>/evaluation`. Raises DataError, ModelError or UsageError in one line."""
    from tunesmith.core import artifacts
    from tunesmith.evaluation import report
    from tunesmith.evaluation.compare import Outcome, compare_all
    from tunesmith.evaluation.suite import pose
    from tunesmith.evaluation.summary import aligned, headline, notes, table

    started = time.perf_counter()
    questions = pose(_read(config, run), config.metrics)
    tuned_model = _find(config, config.model)
    base_model = _base(config, tuned_model)
    base = _examine(config, base_model, "base", questions, run) if base_model else None
    tuned = _examine(config, tuned_model, "tuned" if base else "model", questions, run)
    differences = compare_all(base.scores, tuned.scores, resamples=config.resamples, seed=config.seed) if base else {}
    outcome = Outcome(tuned, base, differences, _facts(config, compared=base is not None))
    folder = run.folder / "evaluation"
    report.write(outcome, folder, verb="evaluate", run=str(run.folder))
    for line in aligned(table(outcome)):
        run.say(line)
    if base:
        run.say(headline(outcome))
    for note in notes(outcome):
        run.warn(note)
    run.say(f"report    {folder / report.HTML}")
    return artifacts.Evaluation(
        evaluation=folder, rows=len(questions), model=tuned.model, base_model=base.model if base else None,
        base=base.values if base else None, tuned=tuned.values,
        difference={name: asdict(d) for name, d in differences.items()} if base else None,
        signatures={score.metric: score.signature for score in tuned.scores},
        answers=folder / report.ANSWERS, report_markdown=folder / report.MARKDOWN, report_html=folder / report.HTML,
        seconds=round(time.perf_counter() - started, 2),
    )  # fmt: skip


def _read(config: EvaluateConfig, run: Run) -> list[Any]:
    """The held-out conversations. Every row counts here, so one that cannot be read ends the evaluation."""
    from tunesmith.data.dataset import dataset_folder
    from tunesmith.data.source import read_conversations

    folders = {path: dataset_folder(path) for path in config.data.path}
    paths = [str(folder / "held_out.jsonl") if folder else path for path, folder in folders.items()]
    read, problems = read_conversations(paths, config.data.format, config.data.columns)
    if problems:
        source, reason = problems[0]
        more = f" (and {len(problems) - 1} rows more)" if len(problems) > 1 else ""
        raise DataError(source, f"{reason.rstrip('.')}{more}", do="Mend or remove the row")
    rows = read[: config.data.rows]
    run.say(f"data      {', '.join(config.data.path)}: {len(rows)} rows")
    if any(row.tools for row in rows):
        run.warn("some rows offer tools; engines do not show them to the model yet")
    return rows


def _find(config: EvaluateConfig, model: str) -> str | Found:
    """The model's files; or its name alone where the engine knows it by that."""
    from tunesmith.models.load import find

    asks_loss = any(metric.asks == "loss" for metric in config.metrics)
    if config.engine.kind in NAMED_BY_THE_ENGINE or is_address(model):
        if asks_loss:
            raise UsageError("metrics", "perplexity needs a model's weights, not a server", got=model, do=_WITHOUT)
        return model
    found = find(model)
    if asks_loss and not (found.base / "config.json").is_file():
        raise UsageError("metrics", "perplexity needs safetensors weights, not a GGUF file", got=model, do=_WITHOUT)
    return found


_WITHOUT = "Name the others: --metrics [bleu, exact]"


def _base(config: EvaluateConfig, tuned: str | Found) -> str | Found | None:
    """The model to compare with, or None."""
    if config.base != "auto":
        return _find(config, config.base) if config.base else None
    origin = None if isinstance(tuned, str) else _trained_from(tuned)
    return _find(config, origin) if origin else None


def _trained_from(found: Found) -> str | None:
    """The base model that a checkpoint or package names, None for a model that names none."""
    from tunesmith.core import files

    folder = found.adapter or found.base
    if (folder / files.MANIFEST).is_file():
        origin = files.read_object(folder / files.MANIFEST).get("base", {}).get("model")
        if origin:
            return str(origin)
    return str(found.base) if found.adapter else None


def _kept(config: EvaluateConfig, model: str | Found, questions: list[Question]) -> Path | None:
    """Where the answers of these weights are kept; None where they are not files or reuse is off."""
    from tunesmith.evaluation.kept import place

    if isinstance(model, str) or not config.reuse:
        return None
    how = {"engine": config.engine.model_dump(), "sampling": config.sampling.model_dump(), "seed": config.seed}
    return place(model, questions, how)


def _keep(kept: Path, answers: list[Any], engine: str, run: Run) -> None:
    """Keep the answers; a cache that cannot be written costs the next run its time, and this one nothing."""
    from tunesmith.evaluation.kept import keep

    try:
        keep(kept, answers, engine)
    except OSError as error:
        run.warn(f"the base model's answers are not kept: {error}")


def _examine(config: EvaluateConfig, model: str | Found, side: str, questions: list[Question], run: Run) -> Sheet:
    """Everything one model is asked; it is out of memory again when this returns."""
    from tunesmith.engines.contract import Sampling
    from tunesmith.evaluation.answers import Answer
    from tunesmith.evaluation.kept import recall
    from tunesmith.evaluation.loss import reference_losses
    from tunesmith.evaluation.suite import Sheet, generate, weigh

    name = model if isinstance(model, str) else model.name
    answers, engine = [Answer(question) for question in questions], ""
    if any(metric.asks == "text" for metric in config.metrics):
        sampling = Sampling(**config.sampling.model_dump(), seed=config.seed)
        kept = _kept(config, model, questions) if side == "base" else None
        known = recall(kept, questions) if kept else None
        if known:
            answers, engine = known
            run.say(f"{side} answers are those kept in {kept}; --reuse false asks again")
            run.event("reused", side=side, answers=str(kept))
        else:
            with run.progress(f"{side} answers", len(questions), "rows") as bar:
                answers, engine = generate(questions, lambda: config.engine.open(model), sampling, done=bar.advance)
            if kept:
                _keep(kept, answers, engine, run)
    if any(metric.asks == "loss" for metric in config.metrics):
        assert not isinstance(model, str)
        with run.progress(f"{side} loss", len(questions), "rows") as bar:
            answers = weigh(answers, lambda rows: reference_losses(model, rows, config.precision, bar.advance))
    sheet = Sheet(name, engine, answers, [metric.score(answers) for metric in config.metrics])
    run.event("scored", side=side, model=name, engine=engine, **sheet.values)
    return sheet


def _facts(config: EvaluateConfig, *, compared: bool) -> dict[str, str]:
    """How it was measured, for the reader of the report."""
    from tunesmith import __version__

    asked = {metric.asks for metric in config.metrics}
    bootstrap = f"95 %, paired bootstrap over rows, {config.resamples} resamples, seed {config.seed}"
    return {
        "data": ", ".join(config.data.path),
        **({"answers": _sampling_words(config)} if "text" in asked else {}),
        **({"loss in": config.precision} if "loss" in asked else {}),
        **({"intervals": bootstrap} if compared else {}),
        "made": f"{time.strftime('%Y-%m-%d %H:%M')} by Tunesmith {__version__}",
    }


def _sampling_words(config: EvaluateConfig) -> str:
    sampling = config.sampling
    how = "greedy" if not sampling.temperature else f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}"
    return f"{how}, at most {sampling.max_tokens} tokens, seed {config.seed}"
