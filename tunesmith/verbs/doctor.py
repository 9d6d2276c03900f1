"""Say what is wrong with a training run and what to do; without a run, what this machine has and lacks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from tunesmith.core.config import Config
from tunesmith.core.errors import DiseaseFound, UsageError

if TYPE_CHECKING:
    from tunesmith.core.artifacts import Checkup, Health
    from tunesmith.core.run import Run
    from tunesmith.training.diagnosis import Diagnosis
    from tunesmith.training.record import Record

SUBJECT = "run"
CHART = "doctor.png"


class DoctorConfig(Config):
    """A run to examine, or nothing for the machine."""

    run: str | None = None
    """The folder of a training run, finished or not; without one the machine is examined."""
    strict: bool = False
    """End with exit code 9 where something is found (or missing), for scripts; else findings are news, not errors."""
    hub_seconds: Annotated[float, Field(gt=0, le=60)] = 3.0
    """Longest wait for a model hub, seconds (for the machine)."""


def preview(config: DoctorConfig) -> str:
    """What would happen, in words."""
    ends = "; exit code 9 where something is found" if config.strict else ""
    if config.run:
        return f"read what {config.run} has written down, name what is wrong with it, draw {CHART}{ends}"
    return f"look at libraries, SQLite, GPU, memory, disk, the embedded model, and ask the hub for {config.hub_seconds:g} s{ends}"


def run(config: DoctorConfig, run: Run) -> Health | Checkup:
    """Examine. Raises UsageError where `run` is no training run; strict leaves a DiseaseFound in `run.unproven`."""
    made = _examine(Path(config.run), run) if config.run else _check(config, run)
    names = [f["name"] for f in made.findings] if config.run else made.missing  # pyright: ignore[reportAttributeAccessIssue]
    if config.strict and names:
        run.unproven = DiseaseFound(config.run or "this machine", f"found {', '.join(names)}", do=f"See {run.folder}")
    return made


def _examine(folder: Path, run: Run) -> Health:
    from tunesmith.core.artifacts import Health
    from tunesmith.core.run import RESULT
    from tunesmith.training.chart import draw_findings
    from tunesmith.training.diagnosis import diagnose

    record, ignored, said_live = _read(folder)
    diagnosis = diagnose(record, ignored)
    chart = run.folder / CHART
    draw_findings(record, diagnosis.findings, chart, folder.name)
    confirmed = {finding.name for finding in diagnosis.findings}
    made = Health(
        run=folder, steps=record.step, finished=(folder / RESULT).is_file(),
        findings=[finding.as_dict() for finding in diagnosis.findings],
        passed=[event for event in said_live if event["name"] not in confirmed | ignored],
        not_judged=diagnosis.not_judged, chart=chart,
    )  # fmt: skip
    _tell(made, diagnosis, run)
    return made


def _read(folder: Path) -> tuple[Record, set[str], list[dict[str, Any]]]:
    """(what the run wrote down, diseases its config ignores, what was said of it while it ran)."""
    from tunesmith import verbs
    from tunesmith.core.config import load, read_yaml
    from tunesmith.core.run import CONFIG, EVENTS, Run
    from tunesmith.training.record import FINDING, Record

    if not (folder / EVENTS).is_file():
        inner = f"Did you mean {folder / 'train'}?" if (folder / "train" / EVENTS).is_file() else "Give its folder"
        raise UsageError(str(folder), "is not a run: it has no events.jsonl", do=inner)
    events = list(Run("doctor", folder).events())
    verb = next(
        (event.get("verb") for event in events if event["event"] == "started"), "no event that says what was started"
    )
    if verb != "train":
        inner = f"Did you mean {folder / 'train'}?" if (folder / "train" / EVENTS).is_file() else ""
        raise UsageError(str(folder), "is no training run", got=verb, do=inner)
    record = Record.read(events)
    if not record.steps and not record.probes and not record.evaluations:
        raise UsageError(str(folder), "ended before anything was trained or measured", do="Look at what it said then")
    config: Any = load(verbs.config_class("train"), read_yaml(folder / CONFIG), where=str(folder / CONFIG))
    ignored = set(config.diagnosis.ignore)
    live = [event for event in events if event["event"] == FINDING]
    return replace(record, facts=_facts(folder, config) | record.facts), ignored, live


def _facts(folder: Path, config: Any) -> dict[str, Any]:
    """What config, result and ledger say, for a run whose events lack it; and which rows lost their end."""
    from tunesmith.core import files
    from tunesmith.core.run import RESULT
    from tunesmith.data.dataset import LEDGER, dataset_folder, open_dataset

    facts: dict[str, Any] = {"learning_rate": config.optimizer.learning_rate, "objective": config.objective.kind}
    result = files.read_object(folder / RESULT) if (folder / RESULT).is_file() else {}
    places = [str(folder), result.get("dataset", ""), *config.dataset.path]
    data = next((found for place in places if place and (found := dataset_folder(place))), None)
    if data is None:
        return facts
    said = open_dataset(data)
    rows = (row for _, row in files.read_jsonl(data / LEDGER) if row["outcome"] != "dropped")
    ends = [row["source"] for row in rows if not row["end_trained"]]
    return facts | {
        "rows": said.train_rows, "held_out_rows": said.held_out_rows, "kept": said.kept + said.truncated,
        "end_token_lost": len(ends), "ends_lost_in": ends[:5],
    }  # fmt: skip


def _tell(made: Health, diagnosis: Diagnosis, run: Run) -> None:
    state = "finished" if made.finished else "not finished"
    run.say(f"run       {made.run}: {made.steps} steps, {state}")
    if not made.findings:
        run.say("found     nothing found", style="green")
    width = max((len(finding.name) for finding in diagnosis.findings), default=0)
    for finding in diagnosis.findings:
        run.say(f"{finding.name:<{width}}  since step {finding.step}: {finding.seen}", style="bold yellow")
        run.say(f"{'':<{width}}  {finding.remedy}")
    for event in made.passed:
        run.say(f"passed    {event['name']}: said while training, not confirmed by the rest of the run", style="dim")
    for name, reason in made.not_judged.items():
        run.say(f"not judged  {name}: {reason}", style="dim")
    run.say(f"chart     {made.chart}")


def _check(config: DoctorConfig, run: Run) -> Checkup:
    from dataclasses import asdict

    from tunesmith.core.artifacts import Checkup
    from tunesmith.planning.checkup import checkup

    checks = checkup(run.folder, config.hub_seconds)
    width = max(len(check.name) for check in checks)
    for check in checks:
        style = {"ok": "", "note": "yellow", "missing": "bold red"}[check.state]
        do = f". {check.do}" if check.do else ""
        run.say(f"{check.state:<7}  {check.name:<{width}}  {check.said}{do}", style=style)
    return Checkup([asdict(check) for check in checks], [check.name for check in checks if check.state == "missing"])
