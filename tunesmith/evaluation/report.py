"""The evaluation on disk: answers.jsonl, evaluation.json, report.md and report.html in one folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.core import files
from tunesmith.evaluation.compare import Outcome
from tunesmith.evaluation.metrics.exact import found
from tunesmith.evaluation.page import page
from tunesmith.evaluation.summary import headline, notes, numbers, row_numbers, table

ANSWERS, NUMBERS, MARKDOWN, HTML = "answers.jsonl", "evaluation.json", "report.md", "report.html"


def write(outcome: Outcome, target: Path, **facts: Any) -> None:
    """Write everything into `target`, a new folder that is complete or absent; `facts` go into its manifest."""
    with files.new_folder(target, **facts) as folder:
        files.write_jsonl(folder / ANSWERS, answer_rows(outcome))
        files.write_json(folder / NUMBERS, numbers(outcome))
        (folder / MARKDOWN).write_text(markdown(outcome), encoding="utf-8")
        (folder / HTML).write_text(page(outcome), encoding="utf-8")


def answer_rows(outcome: Outcome) -> Iterator[dict[str, Any]]:
    """Every question with every answer and its numbers, as answers.jsonl has them."""
    for number, answer in enumerate(outcome.tuned.answers):
        question = answer.question
        row: dict[str, Any] = {
            "source": question.source,
            "prompt": [message.as_dict() for message in question.messages],
            "reference": question.reference,
            "expect": list(question.expect),
        }
        for side, sheet in outcome.sides:
            said: dict[str, Any] = {}
            if sheet.engine:
                said = {"answer": sheet.answers[number].text, "finish": sheet.answers[number].finish}
            scores = {name: round(v, 4) for score in sheet.scores for name, v in score.rows[number].items()}
            row[side] = {**said, "scores": scores}
        yield row


def markdown(outcome: Outcome) -> str:
    """The report as Markdown: numbers first, then every answer."""
    header, *rows = table(outcome)
    lines = [f"# Evaluation of {_plain(outcome.tuned.model)}", ""]
    if outcome.base:
        lines += [
            f"Compared with {_plain(outcome.base.model)} on {len(outcome.tuned.answers)} rows: {headline(outcome)}.",
            "",
        ]
    lines += [_cells(header), _cells(("---",) * len(header)), *map(_cells, rows), ""]
    lines += [f"> {note}\n" for note in notes(outcome)]
    lines += ["## How it was measured", ""]
    lines += [f"- {name}: {_plain(value)}" for name, value in outcome.facts.items()]
    lines += [f"- {score.metric}: `{score.signature}`" for score in outcome.tuned.scores]
    lines += ["", "## Answers", ""]
    for number in range(len(outcome.tuned.answers)):
        lines += _markdown_answer(outcome, number)
    return "\n".join(lines).rstrip() + "\n"


def _markdown_answer(outcome: Outcome, number: int) -> list[str]:
    tuned = outcome.tuned.answers[number]
    question = tuned.question
    lines = [f"### {number + 1}. {_plain(question.source)}", ""]
    lines += [line for message in question.messages for line in _quote(message.role, message.content)]
    if question.reference is not None:
        lines += _quote("reference", question.reference)
    for side, sheet in outcome.sides:
        if sheet.engine:
            text = sheet.answers[number].text
            missing = [expected for expected in question.expect if not found(expected, text)]
            verdict = f", lacks {', '.join(map(_plain, missing))}" if missing else ""
            lines += _quote(f"{side} ({row_numbers(sheet, number)}{verdict})", text)
    return lines


def _quote(title: str, text: str) -> list[str]:
    """A text between fences longer than any inside it, so that nothing in it is read as Markdown."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"**{title}**", "", f"{fence}text", text, fence, ""]


def _plain(text: str) -> str:
    """Text in a line of Markdown: its marks escaped, one line."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~])", r"\\\1", " ".join(text.split()))


def _cells(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
