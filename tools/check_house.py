"""The rules of the house that ruff cannot say: sizes, names, docstrings, twins, forbidden words in code."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = ROOT / "tunesmith"
FILE_LINES, FUNCTION_LINES, PARAMETERS, CLASS_LINES, FIELDS = 400, 60, 6, 200, 12
FORBIDDEN_NAMES = {"utils", "misc", "common", "helpers", "manager", "base"}
FORBIDDEN_WORDS = {"finetuning_type", "tuner", "recipe"}
HANDWRITTEN = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WIDER = {"TrainConfig": 15}  # the one wish that composes every room's (decision 007)
SLEEPERS = {"tunesmith/engines/echo.py"}  # its delay is what it is for


def main() -> int:
    """Print every finding; exit 1 when there is one."""
    findings = [finding for path in sorted(CODE.rglob("*.py")) for finding in check_file(path)]
    findings += [*missing_twins(), *long_contributing()]
    for finding in findings:
        print(finding)
    return bool(findings)


def check_file(path: Path) -> Iterator[str]:
    """All findings of one source file."""
    text, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT)
    tree = ast.parse(text)
    if len(text.splitlines()) > FILE_LINES:
        yield f"{name}: more than {FILE_LINES} lines; split by meaning"
    if path.stem in FORBIDDEN_NAMES:
        yield f"{name}: a name without meaning"
    if not ast.get_docstring(tree) and text.strip():
        yield f"{name}:1: no docstring that says the purpose"
    for word in FORBIDDEN_WORDS:
        if re.search(rf"\b{word}\b", text) and "migration" not in path.parts:
            yield f"{name}: uses {word!r}; see Words in docs/house.md"
    if re.search(r"\b(time|asyncio)\.sleep\(", text) and str(name) not in SLEEPERS:
        yield f"{name}: a sleep instead of a signal"
    for node in ast.walk(tree):
        yield from (f"{name}:{getattr(node, 'lineno', 1)}: {said}" for said in _check_node(node, public_in(tree, node)))


def public_in(tree: ast.Module, node: ast.AST) -> bool:
    """Whether a function is part of what its room offers: top level or a method of a public class, no underscore.

    Methods of an autograd Function are torch's to call: what it computes stands at its class.
    """
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
        return False
    public = (c for c in tree.body if isinstance(c, ast.ClassDef) and not c.name.startswith("_"))
    owners = [tree, *(c for c in public if "Function" not in {ast.unparse(base) for base in c.bases})]
    return any(node in owner.body for owner in owners)


def _check_node(node: ast.AST, public: bool) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        if _code_lines(node) > FUNCTION_LINES:
            yield f"{node.name}: more than {FUNCTION_LINES} code lines"
        arguments = node.args
        count = len(
            [
                a
                for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
                if a.arg not in {"self", "cls", "ctx"}
            ]
        )
        if count > PARAMETERS:
            yield f"{node.name}: {count} parameters, more than {PARAMETERS}"
        if public and not ast.get_docstring(node):
            yield f"{node.name}: public without a docstring"
    if isinstance(node, ast.ClassDef):
        if (node.end_lineno or 0) - node.lineno > CLASS_LINES:
            yield f"class {node.name}: more than {CLASS_LINES} lines"
        if any(isinstance(b, ast.Name) and b.id == "Config" for b in node.bases):
            yield from _check_config(node)
    if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name) and node.type.id == "Exception":
        yield "except Exception around what is not understood"


def _check_config(node: ast.ClassDef) -> Iterator[str]:
    fields = [p for p in node.body if isinstance(p, ast.AnnAssign) and "ClassVar" not in ast.unparse(p.annotation)]
    limit = WIDER.get(node.name, FIELDS)
    if len(fields) > limit:
        yield f"class {node.name}: {len(fields)} options, more than {limit}"
    for field in fields:
        after = node.body[node.body.index(field) + 1 :][:1]
        if ast.unparse(field.target) != "kind" and not (
            after and isinstance(after[0], ast.Expr) and isinstance(after[0].value, ast.Constant)
        ):
            yield f"option {ast.unparse(field.target)}: no docstring under it"


def _code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def missing_twins() -> Iterator[str]:
    """Handwritten pages without their Chinese twin, and twins without original."""
    for page in HANDWRITTEN:
        twin = ROOT / "README.zh.md" if page.name == "README.md" else ROOT / "docs" / "zh" / page.name
        if not twin.is_file():
            yield f"{page.relative_to(ROOT)}: no Chinese twin at {twin.relative_to(ROOT)}"
    for twin in (ROOT / "docs" / "zh").glob("*.md"):
        if not (ROOT / "docs" / twin.name).is_file():
            yield f"{twin.relative_to(ROOT)}: no English original"


def long_contributing() -> Iterator[str]:
    """CONTRIBUTING.md stays at most 60 lines."""
    page = ROOT / "CONTRIBUTING.md"
    if page.is_file() and len(page.read_text(encoding="utf-8").splitlines()) > 60:
        yield "CONTRIBUTING.md: more than 60 lines"


if __name__ == "__main__":
    sys.exit(main())
