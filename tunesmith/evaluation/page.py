"""The evaluation as one HTML page: charts, numbers and every answer side by side. Asks nothing of any network."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from tunesmith.evaluation.charts import difference_chart, score_chart
from tunesmith.evaluation.compare import Outcome
from tunesmith.evaluation.metrics.exact import marks
from tunesmith.evaluation.suite import Sheet
from tunesmith.evaluation.summary import headline, notes, row_numbers, table

STYLE = """
:root{color-scheme:light dark;--page:#fbfbf9;--card:#fff;--ink:#1c2024;--soft:#60666d;--line:#e2e3df;--base:#8d939b;
--tuned:#1f5fd6;--model:var(--tuned);--good:#18794e;--bad:#c0342b;--mark:#fff1a8}
@media(prefers-color-scheme:dark){:root{--page:#14161a;--card:#1c1f24;--ink:#e9ebee;--soft:#a0a7af;--line:#31363d;
--base:#8b929b;--tuned:#7db0ff;--good:#5cc88f;--bad:#ff8f85;--mark:#5c4d00}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}h1{font-size:28px;line-height:1.25;margin:0 0 4px}
h2{font-size:20px;margin:40px 0 12px}p{margin:8px 0}.soft,dt{color:var(--soft)}
.note{border-left:4px solid var(--bad);padding:4px 12px}.charts{display:grid;gap:16px;grid-template-columns:1fr 1fr}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{padding:8px 12px;text-align:right;border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums;white-space:nowrap}
th:first-child,td:first-child,th:last-child,td:last-child{text-align:left}th{color:var(--soft);font-weight:500}
.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}svg{width:100%;height:auto;display:block}
svg text{font:13px system-ui,sans-serif;fill:var(--ink)}svg .faint{fill:var(--soft);font-size:12px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 16px;margin:0}dd{margin:0;overflow-wrap:anywhere}
code{font:13px ui-monospace,monospace}.answer{margin:0 0 14px}.answer h3{font-size:16px;margin:0 0 10px;white-space:pre-wrap}
.sides{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(240px,1fr))}
.side{border-top:3px solid var(--line);padding-top:8px;min-width:0}.side.base{border-color:var(--base)}
.side.tuned,.side.model{border-color:var(--tuned)}.side h4{margin:0 0 4px;font-size:13px;font-weight:600;color:var(--soft)}
.text{white-space:pre-wrap;overflow-wrap:anywhere}mark{background:var(--mark);color:inherit;border-radius:3px;padding:0 2px}
.meta{font-size:13px;color:var(--soft);margin-top:6px}details{margin:0 0 10px}summary{cursor:pointer;color:var(--soft)}
.filter{display:flex;flex-wrap:wrap;gap:8px;margin:0 0 14px}.filter input{position:absolute;opacity:0}
.filter label{border:1px solid var(--line);border-radius:99px;padding:4px 14px;cursor:pointer;background:var(--card)}
.filter input:checked+label{border-color:var(--tuned);color:var(--tuned);font-weight:600}
.filter input:focus-visible+label{outline:2px solid var(--tuned)}
main:has(#only-gained:checked) .answer:not(.gained),main:has(#only-lost:checked) .answer:not(.lost),
main:has(#only-wrong:checked) .answer:not(.wrong){display:none}
@media(max-width:760px){.charts{grid-template-columns:1fr}}
@media print{.filter{display:none}.answer{break-inside:avoid}}
"""
# Nothing may be fetched, whatever an answer contains.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
VERDICTS = {"better": ("good", "▲ better"), "worse": ("bad", "▼ worse")}


def page(outcome: Outcome) -> str:
    """The whole page as HTML text."""
    against = f" against {text(outcome.base.model)}" if outcome.base else ""
    parts = [
        f"<h1>{text(outcome.tuned.model)}</h1>",
        f'<p class="soft">{len(outcome.tuned.answers)} questions{against}</p>',
        f"<p>{text(headline(outcome))}</p>" if outcome.base else "",
        *(f'<p class="note">{text(note)}</p>' for note in notes(outcome)),
        _charts(outcome),
        "<h2>Numbers</h2>", _table(outcome),
        "<h2>How it was measured</h2>", _facts(outcome),
        "<h2>Answers</h2>", _filter(outcome),
        *(_answer(outcome, number) for number in range(len(outcome.tuned.answers))),
    ]  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Evaluation of {text(outcome.tuned.model)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{chr(10).join(parts)}\n</main></body></html>\n"
    )


def text(raw: str) -> str:
    """Text as HTML shows it; control characters that HTML forbids become the replacement character."""
    return html.escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\ufffd", raw))


def _charts(outcome: Outcome) -> str:
    charts = [score_chart(outcome), difference_chart(outcome)]
    cards = "".join(f'<div class="card">{chart}</div>' for chart in charts if chart)
    return f'<div class="charts">{cards}</div>' if cards else ""


def _table(outcome: Outcome) -> str:
    header, *rows = table(outcome)
    lines = ["<tr>" + "".join(f'<th scope="col">{text(cell)}</th>' for cell in header) + "</tr>"]
    for row in rows:
        cells = [VERDICTS.get(cell, ("", cell)) for cell in row]
        lines.append("<tr>" + "".join(f'<td class="{colour}">{text(words)}</td>' for colour, words in cells) + "</tr>")
    return f'<div class="card wide"><table>{"".join(lines)}</table></div>'


def _facts(outcome: Outcome) -> str:
    facts = [(name, text(value)) for name, value in outcome.facts.items()]
    facts += [(score.metric, f"<code>{text(score.signature)}</code>") for score in outcome.tuned.scores]
    return '<dl class="card">' + "".join(f"<dt>{text(name)}</dt><dd>{value}</dd>" for name, value in facts) + "</dl>"


def _right(sheet: Sheet | None, number: int) -> bool | None:
    """Whether an answer is right by `exact`; None where that was not asked."""
    exact = next((score for score in sheet.scores if score.metric == "exact"), None) if sheet else None
    return exact.rows[number]["exact"] > 0 if exact else None


def _classes(outcome: Outcome, number: int) -> list[str]:
    before, after = _right(outcome.base, number), _right(outcome.tuned, number)
    if after is False:
        return ["lost", "wrong"] if before else ["wrong"]
    return ["gained"] if after and before is False else []


def _filter(outcome: Outcome) -> str:
    classes = [name for number in range(len(outcome.tuned.answers)) for name in _classes(outcome, number)]
    if _right(outcome.tuned, 0) is None:
        return ""
    choices = [("all", f"All {len(outcome.tuned.answers)}")]
    if outcome.base:
        choices += [("gained", f"Gained {classes.count('gained')}"), ("lost", f"Lost {classes.count('lost')}")]
    choices.append(("wrong", f"Wrong {classes.count('wrong')}"))
    buttons = "".join(
        f'<input type="radio" name="only" id="only-{name}"{" checked" if name == "all" else ""}>'
        f'<label for="only-{name}">{words}</label>'
        for name, words in choices
    )
    return f'<div class="filter" role="radiogroup" aria-label="Which answers to show">{buttons}</div>'


def _answer(outcome: Outcome, number: int) -> str:
    question = outcome.tuned.answers[number].question
    *context, asked = question.messages
    before = "".join(
        f"<p><b>{message.role}</b> <span class='text'>{text(message.content)}</span></p>" for message in context
    )
    columns = [_side(side, sheet, number, question.expect) for side, sheet in outcome.sides]
    reference = question.reference if question.reference is not None else "(none)"
    columns.append(_column("reference", "reference", _marked(reference, question.expect), text(question.source)))
    return (
        f'<article class="card answer {" ".join(_classes(outcome, number))}"><h3>{text(asked.content)}</h3>'
        + (f"<details><summary>{len(context)} turns before</summary>{before}</details>" if context else "")
        + f'<div class="sides">{"".join(columns)}</div></article>'
    )


def _side(side: str, sheet: Sheet, number: int, expect: Sequence[str]) -> str:
    right = _right(sheet, number)
    badge = {True: ' <span class="good">✓ right</span>', False: ' <span class="bad">✗ wrong</span>', None: ""}[right]
    answer = sheet.answers[number]
    cut = " · cut at the token limit" if answer.finish == "length" else ""
    said = _marked(answer.text, expect) if sheet.engine else '<span class="soft">(not asked)</span>'
    return _column(side, f"{side}{badge}", said, f"{row_numbers(sheet, number)}{cut}")


def _column(kind: str, title: str, body: str, meta: str) -> str:
    return (
        f'<section class="side {kind}"><h4>{title}</h4><div class="text" dir="auto">{body}</div>'
        f'<div class="meta">{meta}</div></section>'
    )


def _marked(raw: str, expect: Sequence[str]) -> str:
    """Text as HTML with the expected strings marked; where two overlap, the first one is."""
    parts, end = [], 0
    for start, stop in sorted(span for expected in expect for span in marks(expected, raw)):
        if start >= end:
            parts += [text(raw[end:start]), f"<mark>{text(raw[start:stop])}</mark>"]
            end = stop
    return "".join([*parts, text(raw[end:])])
