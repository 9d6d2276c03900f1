"""The quickstart as one HTML page: what was known before and after, what it cost, what was proven."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.evaluation.page import POLICY, STYLE, text

ROWS = (
    ("exact", "questions in other words answered with the right fact", "%"),
    ("bleu4", "BLEU-4 against the reference answer", "%"),
    ("general", "general questions answered right", "%"),
    ("held_out_loss", "loss on held-out rows, nats per token", ""),
)


def story_page(report: dict[str, Any], folder: Path) -> str:
    """HTML text of the report; the loss curve is taken in from the training run below `folder`."""
    chart = folder / "train" / "loss.svg"
    parts = [
        "<h1>Tunesmith quickstart</h1>",
        f'<p class="soft">{text(str(report["package"]))}</p>',
        "<h2>Before and after</h2>", _scores(report),
        "<h2>Asked over HTTP</h2>",
        f'<div class="card"><p><b>{text(report["answer"]["question"])}</b></p><p>{text(report["answer"]["answer"])}</p></div>',
        "<h2>Training</h2>",
        f'<div class="card">{_inline(chart)}</div>' if chart.is_file() else "",
        _facts(report),
        "<h2>Proofs</h2>", _proofs(report["proofs"]),
        "<h2>Time</h2>", _chapters(report["chapters"]),
    ]  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><title>Tunesmith quickstart</title>'
        f"<style>{STYLE}</style></head>\n<body><main>\n{chr(10).join(parts)}\n</main></body></html>\n"
    )


def _inline(chart: Path) -> str:
    """The SVG element without XML header; its own text sizes stay."""
    svg = chart.read_text(encoding="utf-8")
    return svg[svg.index("<svg") :]


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    head = "".join(f'<th scope="col">{text(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="card wide"><table><tr>{head}</tr>{body}</table></div>'


def _scores(report: dict[str, Any]) -> str:
    rows = [
        (words, f"{report['base'][name]:.2f} {unit}", f"{report['tuned'][name]:.2f} {unit}", "")
        for name, words, unit in ROWS
    ]
    return _table(("", "before", "after", ""), rows)


def _facts(report: dict[str, Any]) -> str:
    memory, train = report["memory"], report["train"]
    facts = {
        "training time": f"{train['seconds']:.0f} s",
        "speed": f"{train['tokens_per_second']:.0f} tokens/s (padding not counted)",
        "memory": f"{memory['measured_bytes'] / 2**30:.2f} GiB measured, {memory['predicted_bytes'] / 2**30:.2f} GiB planned",
    }
    return '<dl class="card">' + "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in facts.items()) + "</dl>"


def _proofs(proofs: dict[str, bool]) -> str:
    return _table(("proof", "", ""), [(name, "holds" if held else "FAILS", "") for name, held in proofs.items()])


def _chapters(chapters: list[dict[str, Any]]) -> str:
    longest = max(chapter["seconds"] for chapter in chapters) or 1
    bars = "".join(
        f"<dt>{text(chapter['name'])}</dt><dd>"
        f'<svg viewBox="0 0 400 16" style="width:70%;display:inline"><rect height="14" width="{chapter["seconds"] / longest * 400:.1f}" '
        f'fill="var(--tuned)" rx="3"/></svg> {chapter["seconds"]:.1f} s</dd>'
        for chapter in chapters
    )
    return f'<dl class="card">{bars}</dl>'
