"""What is wrong with a run, by name: pure functions over what the run has written down. Knows no model."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from tunesmith.core.config import Config
from tunesmith.training.diseases import DISEASES, DiseaseName
from tunesmith.training.record import Finding, Record


class DiagnosisConfig(Config):
    """What is looked for while training, and what follows from it."""

    on_disease: Literal["warn", "stop"] = "warn"
    """What a finding leads to: warn says it and goes on; stop saves a checkpoint and ends with exit code 9."""
    samples: Annotated[int, Field(ge=0, le=64)] = 4
    """Questions of the held-out rows that the model answers at each evaluation; 0 asks none."""
    sample_tokens: Annotated[int, Field(ge=16, le=512)] = 64
    """Longest sample answer in tokens; never more than about twice the rows' own answers."""
    general: Annotated[int, Field(ge=0, le=32)] = 16
    """Rows of a fixed general set, English and Chinese by turns, scored at each evaluation; 0 scores none."""
    ignore: tuple[DiseaseName, ...] = ()
    """Names of diseases not to look for."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All that can be said of a run."""

    findings: list[Finding]
    not_judged: dict[str, str] = field(default_factory=dict)
    """Diseases of which nothing can be said, with the reason."""


def diagnose(record: Record, ignore: Collection[str] = ()) -> Diagnosis:
    """Look for every disease but those to be ignored. Findings come in the order in which they began.

    What only follows from another finding is left out: one cause, one remedy.
    """
    lacking = {name: reason for name, disease in DISEASES.items() if (reason := disease.lacks(record))}
    found = {
        name: finding
        for name, disease in DISEASES.items()
        if name not in lacking and (finding := disease.find(record)) is not None
    }
    own = [finding for name, finding in found.items() if not set(DISEASES[name].FOLLOWS) & set(found)]
    return Diagnosis(
        sorted((finding for finding in own if finding.name not in ignore), key=lambda finding: finding.step),
        {name: reason for name, reason in lacking.items() if name not in ignore},
    )
