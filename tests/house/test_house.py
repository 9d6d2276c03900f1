"""The house: floors, sizes, the cost of imports, and documents that are true."""

from __future__ import annotations

import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith import cli, verbs
from tunesmith.core.config import options

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "zh").glob("*.md")]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_imports_go_down():
    done = run("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()")
    assert done.returncode == 0, done.stdout


def test_the_rules_of_the_house_hold():
    done = run("tools/check_house.py")
    assert done.returncode == 0, done.stdout


def test_generated_pages_are_what_the_code_says():
    done = run("tools/write_docs.py", "--check")
    assert done.returncode == 0, done.stdout


def cpu_seconds(*words: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run(*words).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_is_light():
    run("-m", "tunesmith", "--help")  # bytecode
    assert min(cpu_seconds("-m", "tunesmith", "--help") for _ in range(3)) < 0.4


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_no_help_loads_torch(verb):
    heavy = "{'torch', 'transformers', 'numpy', 'fastapi', 'matplotlib', 'pyarrow'} & set(sys.modules)"
    done = run(
        "-c", f"import sys; from tunesmith.cli import main; main(['{verb}', '--help']); sys.exit(str({heavy} or ''))"
    )
    assert done.stderr.strip() in {"", "set()"}, done.stderr
    for option in options(verbs.config_class(verb)):
        assert f"--{option.path} " in done.stdout
        assert option.help, option.path


def test_import_loads_no_torch_and_offers_the_verbs():
    done = run("-c", "import sys, tunesmith; print('torch' in sys.modules, *dir(tunesmith))")
    assert done.stdout.startswith("False ")
    for verb in verbs.VERBS:
        assert verb in done.stdout.split()
        assert f"{verb.title()}Config" in done.stdout.split()


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_every_verb_has_the_same_shape(verb):
    module = verbs.verb_module(verb)
    config = verbs.config_class(verb)
    assert module.SUBJECT in config.model_fields
    assert callable(module.run)
    assert callable(module.preview)
    assert verbs.summary(verb).endswith(".")
    assert (ROOT / "tunesmith" / "verbs" / f"{verb}.py").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_the_documents_are_commands(page):
    """Every `tunesmith ...` line of a code block is taken by the command line (options known, values in range)."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in lines:
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words[:1] != ["tunesmith"] or {"--help", "--template", "--resume", "--replay"} & set(words):
            continue
        if any(word.endswith((".yaml", ".yml")) for word in words[2:3]):
            continue  # the reader's own file
        assert cli.main([*words[1:], "--dry-run"]) == 0, line


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    for page in PAGES:
        assert set(re.findall(r"^make ([a-z]+)", page.read_text(encoding="utf-8"), flags=re.M)) <= targets
