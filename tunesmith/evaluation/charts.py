"""Two small charts as inline SVG: scores in percent as bars, differences as intervals. Colours come from the page."""

from __future__ import annotations

import html

from tunesmith.evaluation.compare import Outcome
from tunesmith.evaluation.summary import label

WIDTH, LEFT, RIGHT, TOP = 480, 76, 56, 34  # user units; the page scales them
PLOT = WIDTH - LEFT - RIGHT


def score_chart(outcome: Outcome) -> str:
    """Bars from 0 to 100 percent for every number that is a percentage; empty text where none is."""
    names = _percentages(outcome)
    if not names:
        return ""
    sides = [(side, sheet.values) for side, sheet in outcome.sides]
    thick, pitch = 13, 15 * len(sides) + 16
    parts = [_title("Scores, percent"), _legend([side for side, _ in sides])]
    for row, name in enumerate(names):
        top = TOP + row * pitch
        parts.append(_text(LEFT - 8, top + 15 * len(sides) / 2 + 4, label(name), anchor="end"))
        for place, (side, values) in enumerate(sides):
            y, length = top + place * 15, max(PLOT * values[name] / 100, 1)
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{thick}" rx="2" fill="var(--{side})"/>'
            )
            parts.append(_text(LEFT + length + 6, y + 11, f"{values[name]:.1f}"))
    spoken = "; ".join(f"{label(n)}: " + ", ".join(f"{side} {v[n]:.1f}" for side, v in sides) for n in names)
    return _svg(TOP + len(names) * pitch, parts, f"Scores in percent. {spoken}")


def difference_chart(outcome: Outcome) -> str:
    """Tuned minus base with its interval for every percentage, around a line at zero; empty text without a base."""
    names = [name for name in _percentages(outcome) if name in outcome.differences]
    if not names:
        return ""
    found = [outcome.differences[name] for name in names]
    limits = [limit for d in found for limit in (d.low, d.high, d.value)]
    low, high = 1.05 * min(-1.0, *limits), 1.05 * max(1.0, *limits)

    def x(value: float) -> float:
        return round(LEFT + PLOT * (value - low) / (high - low), 1)

    pitch, height = 32, TOP + 32 * len(names)
    parts = [_title("Tuned minus base, points, 95 % interval")]
    parts.append(
        f'<line x1="{x(0)}" x2="{x(0)}" y1="{TOP - 6}" y2="{height}" stroke="var(--soft)" stroke-dasharray="3 3"/>'
    )
    for row, (name, difference) in enumerate(zip(names, found, strict=True)):
        y = TOP + row * pitch + 14
        colour = {"better": "good", "worse": "bad"}.get(difference.verdict, "base")
        parts.append(_text(LEFT - 8, y + 4, label(name), anchor="end"))
        ends = f'x1="{x(difference.low)}" x2="{x(difference.high)}" y1="{y}" y2="{y}"'
        parts.append(f'<line {ends} stroke="var(--{colour})" stroke-width="3"/>')
        parts.append(f'<circle cx="{x(difference.value)}" cy="{y}" r="5" fill="var(--{colour})"/>')
        parts.append(_text(WIDTH, y + 4, f"{difference.value:+.1f}", anchor="end"))
    parts.append(_text(x(0), height + 14, "0", anchor="middle", faint=True))
    spoken = "; ".join(
        f"{label(n)} {d.value:+.1f} from {d.low:+.1f} to {d.high:+.1f}" for n, d in zip(names, found, strict=True)
    )
    return _svg(height + 20, parts, f"Tuned minus base. {spoken}")


def _percentages(outcome: Outcome) -> list[str]:
    return [name for score in outcome.tuned.scores if score.unit == "%" for name in score.values]


def _svg(height: float, parts: list[str], spoken: str) -> str:
    said = html.escape(spoken)
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{said}">{"".join(parts)}</svg>'


def _title(words: str) -> str:
    return _text(0, 14, words, faint=True)


def _legend(sides: list[str]) -> str:
    parts = []
    for place, side in enumerate(reversed(sides)):
        x = WIDTH - 58 - place * 62
        parts.append(
            f'<rect x="{x}" y="4" width="11" height="11" rx="2" fill="var(--{side})"/>{_text(x + 16, 14, side)}'
        )
    return "".join(parts)


def _text(x: float, y: float, words: str, *, anchor: str = "start", faint: bool = False) -> str:
    style = ' class="faint"' if faint else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{html.escape(words)}</text>'
