"""What verbs make: frozen values whose fields are the keys of result.json. Folders hold the rest."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunesmith.core.examples import Kind


def as_result(artifact: Any) -> dict[str, Any]:
    """The artifact as result.json holds it: paths as text."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(artifact).items()}


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rendered rows in a folder, with the ledger of what happened to every row."""

    dataset: Path
    format: str
    rows: int
    """Rows read."""
    kept: int
    truncated: int
    dropped: int
    reasons: dict[str, int]
    """Why rows were dropped, with counts."""
    train_rows: int
    held_out_rows: int
    tokens: int
    trained_tokens: int
    longest: int
    """Tokens of the longest kept row."""
    end_token_lost: int
    """Kept rows whose last end-of-turn token is not trained."""
    template_sha256: str
    data_sha256: str
    kind: Kind = "conversation"
    """What the rows are."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes by part at the longest batch, against what the machine has."""

    model: str
    method: str
    precision: Literal["fp32", "bf16"]
    parameters: int
    trainable_parameters: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    logits_bytes: int
    reward_bytes: int
    """Beside the trained model: reward models, and PPO's value head with its optimizer."""
    overhead_bytes: int
    """Libraries, allocator and work space that no formula names."""
    overlap_bytes: int
    """Part of the sum that is never held at the same moment: gradients come as activations and logits go."""
    total_bytes: int
    """The most that is held at one moment: all parts less the overlap."""
    available_bytes: int
    device: str
    fits: bool
    checkpointing: bool
    """Whether activations are recomputed in the backward pass."""
    advice: str
    """The smallest change that makes it fit; empty where it fits."""
    seconds_per_epoch: float | None
    """Of the steps of the first epoch, from a calibration of a few seconds; None where nothing was measured."""
    seconds_per_further_epoch: float | None
    """Of every later one: the same, or without the layers whose output train's activation cache holds by then."""


@dataclass(frozen=True, slots=True)
class Training:
    """A finished training run."""

    checkpoint: Path
    """The checkpoint to use: the best one where evaluation ran, else the last."""
    steps: int
    epochs: float
    train_loss: float | None
    """Mean over the last epoch; None where it is no number."""
    held_out_loss: float | None
    perplexity: float | None
    base_held_out_loss: float | None
    """Held-out loss before the first step."""
    tokens_per_second: float
    """Non-padding tokens trained per second, evaluation and saving not counted."""
    seconds: float
    peak_memory_bytes: int
    """Of the GPU where the run has one (what torch has taken of it), else of RAM; of the first process."""
    predicted_memory_bytes: int
    trainable_parameters: int
    parameters: int
    dataset: Path
    precision: str
    stopped_early: bool
    charts: list[str] = field(default_factory=list)
    held_out_reward: float | None = None
    """Mean reward on held-out prompts, where the objective draws answers."""
    base_held_out_reward: float | None = None
    replay: dict[str, Any] | None = None
    """Of a replay: the run it repeats, whether its losses are the same bit for bit, and where not, from which step on."""
    findings: list[str] = field(default_factory=list)
    """Names of the diseases that were found while training; empty for a healthy run."""


@dataclass(frozen=True, slots=True)
class HostCommands:
    """A training run over several hosts that is prepared and waits to be started."""

    run: Path
    commands: list[str]
    """What to type on each host, in their order."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of a base model and a tuned one on the same rows."""

    evaluation: Path
    rows: int
    model: str
    base_model: str | None
    base: dict[str, float] | None
    """Numbers by name (bleu1 to bleu4 and exact in percent, perplexity); None where nothing was compared with."""
    tuned: dict[str, float]
    difference: dict[str, Any] | None
    """By number: value (tuned minus base), low and high of its 95 % interval, verdict in words."""
    signatures: dict[str, str]
    """How each metric was measured."""
    answers: Path
    report_markdown: Path
    report_html: Path
    seconds: float


@dataclass(frozen=True, slots=True)
class Package:
    """An exported model that passed its proofs."""

    package: Path
    files: dict[str, int]
    """Name and bytes of the files that carry weights."""
    proofs: dict[str, bool]
    not_made: dict[str, str]
    """Proofs that could not be made, and why."""
    details: dict[str, Any]
    """What each proof measured."""


@dataclass(frozen=True, slots=True)
class Service:
    """A server that ran and ended."""

    address: str
    engine: str
    model: str
    requests: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Talk:
    """A chat in the terminal that ended."""

    transcript: Path
    """The conversations as rows in the OpenAI layout; `prepare` reads them."""
    engine: str
    model: str
    turns: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Quickstart:
    """The whole story in numbers; the keys of report.json."""

    base: dict[str, float]
    tuned: dict[str, float]
    train: dict[str, float]
    memory: dict[str, int]
    chapters: list[dict[str, Any]]
    proofs: dict[str, bool]
    package: Path
    answer: dict[str, str]
    """The question asked over HTTP at the end, and what came back."""


@dataclass(frozen=True, slots=True)
class Migration:
    """A file of another platform that became configs of ours."""

    source: Path
    configs: dict[str, str]
    """Verb -> the config that was written for it."""
    explained: Path
    counts: dict[str, int]
    """How many keys became an option, had no counterpart, and so on."""
    lost: list[str]
    """Keys whose wish cannot be kept; where `configs` holds any, they were left out by the person's word."""
    rows: dict[str, int]
    """Files of rows that were written anew, with how many rows each holds."""
    outs: dict[str, str]
    """Verb -> the folder in which the file wants its result."""


@dataclass(frozen=True, slots=True)
class Health:
    """What the doctor says of a run."""

    run: Path
    steps: int
    finished: bool
    findings: list[dict[str, Any]]
    """Each with name, step where it began, what was seen, its numbers, and the remedy."""
    passed: list[dict[str, Any]]
    """What was found while training and the rest of the run does not confirm."""
    not_judged: dict[str, str]
    """Diseases of which nothing can be said, and why."""
    chart: Path


@dataclass(frozen=True, slots=True)
class Checkup:
    """What this machine has and lacks."""

    checks: list[dict[str, str]]
    """Each with name, state (ok, note, missing), what was seen, and what to do."""
    missing: list[str]
    """Names of what is missing."""
