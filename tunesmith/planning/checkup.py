"""What this machine has of what Tunesmith asks: one line a thing, ok or missing and what to do. Loads no torch."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib import request
from urllib.error import HTTPError

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tunesmith.core import hardware, hub
from tunesmith.models import embedded

CHECKOUT = Path(__file__).resolve().parents[2]
SPARE_DISK_BYTES = 5 << 30
"""A checkpoint of full tuning of a small model, twice; less is said, not refused."""
SPARE_MEMORY_BYTES = 2 << 30
"""What the libraries and the embedded model take together while training."""
FIXED_SQLITE = ((3, 51, 3), (3, 50, 7), (3, 44, 6))
"""Releases, each with its line, that do not lose commits when two connections meet at a checkpoint of the log."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the checkup. A note is a statement; only what is missing is in the way of something."""

    name: str
    state: Literal["ok", "note", "missing"]
    said: str
    do: str = ""


def checkup(run_folder: Path, hub_seconds: float) -> list[Check]:
    """Look at everything; hubs are asked at most `hub_seconds` each."""
    machine = hardware.probe()
    return [
        *libraries(), sqlite(), gpu(machine), processor(machine), memory(machine),
        disk("cache", hub.cache_folder()), disk("runs", run_folder), writable(hub.cache_folder()),
        model(), *hubs(hub_seconds),
    ]  # fmt: skip


def libraries() -> list[Check]:
    """Python, then the libraries of every installation extra, against what pyproject.toml asks.

    An extra that is not installed is a choice; a library of the wrong version is in the way.
    """
    python, wanted = _asked()
    version = sys.version.split()[0]
    fits = SpecifierSet(python).contains(version)
    found = [Check("python", "ok" if fits else "missing", version, "" if fits else f"Install python {python}")]
    for extra, requirements in wanted.items():
        versions = {one.name: _version(one.name) for one in requirements}
        wrong = [
            one for one in requirements
            if not (own := versions[one.name]) or not one.specifier.contains(Version(own).public, prereleases=True)
        ]  # fmt: skip
        has = ", ".join(f"{name} {own}" for name, own in versions.items() if own)
        if not wrong:
            found.append(Check(extra or "core", "ok", has))
            continue
        lacks = ", ".join(f"{one.name} {versions[one.name] or 'is not here'}, wanted {one.specifier}" for one in wrong)
        typed = f"pip install 'tunesmith[{extra}]', where you want it" if extra else "pip install --upgrade tunesmith"
        is_optional = extra and all(versions[one.name] is None for one in wrong)
        found.append(Check(extra or "core", "note" if is_optional else "missing", lacks, typed))
    return [*found, *_constraints()]


def _asked() -> tuple[str, dict[str, list[Requirement]]]:
    """(python, extra -> requirements); the extra of the core is empty, and dev is nobody's but ours."""
    page = CHECKOUT / "pyproject.toml"
    if page.is_file():
        project = tomllib.loads(page.read_text(encoding="utf-8"))["project"]
        extras = {"": project["dependencies"], **project["optional-dependencies"]}
        python = project["requires-python"]
    else:
        about = metadata.metadata("tunesmith")
        python, extras = about["Requires-Python"], {}
        for text in metadata.requires("tunesmith") or []:
            name = re.search(r"extra == ['\"](\w+)['\"]", text)
            extras.setdefault(name[1] if name else "", []).append(text.split(";")[0])
    return python, {name: [Requirement(text) for text in texts] for name, texts in extras.items() if name != "dev"}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _constraints() -> list[Check]:
    """In a checkout: installed packages at other versions than those that were tested together."""
    page = CHECKOUT / "constraints.txt"
    if not page.is_file():
        return []
    pins = re.findall(r"^([\w.-]+)==(\S+)", page.read_text(encoding="utf-8"), flags=re.M)
    others = [
        f"{name} {own} ({pin})" for name, pin in pins if (own := _version(name)) and Version(own).public != pin
    ]  # fmt: skip
    if not others:
        return [Check("constraints", "ok", "every installed library is at the tested version")]
    said = f"{len(others)} libraries are not at the tested version: {', '.join(others[:5])}"
    return [Check("constraints", "note", said, "pip install -c constraints.txt NAME, if something fails")]


def sqlite() -> Check:
    """Version and full-text search of Python's SQLite."""
    version = sqlite3.sqlite_version
    with sqlite3.connect(":memory:") as base:
        options = {row[0] for row in base.execute("pragma compile_options")}
    if "ENABLE_FTS5" not in options:
        return Check("sqlite", "missing", f"{version} without FTS5", "Use a Python whose SQLite has full-text search")
    parts = tuple(int(part) for part in version.split("."))
    fixed = parts > FIXED_SQLITE[0] or any(parts[:2] == line[:2] and parts >= line for line in FIXED_SQLITE)
    if fixed:
        return Check("sqlite", "ok", f"{version} with FTS5")
    said = f"{version} with FTS5; releases before 3.51.3 can lose a commit when two processes write one file"
    return Check("sqlite", "note", said, "Let one process at a time write an index")


def gpu(machine: hardware.Machine) -> Check:
    """Name, driver, memory and bf16 of the GPU, and whether the installed torch can use it."""
    if not machine.gpu_name:
        said = "none; training runs on the processor"
        if not machine.cuda_build:
            return Check("gpu", "note", said)
        return Check(
            "gpu",
            "note",
            f"{said}; torch is a build for CUDA, which holds about 0.35 GiB more",
            "Install torch for the CPU",
        )
    driver = "driver unknown"
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    if done.returncode == 0 and done.stdout.strip():
        driver = f"driver {done.stdout.split()[0]}"
    said = (
        f"{machine.gpu_name}, {driver}, {_gib(machine.gpu_available_bytes)} of {_gib(machine.gpu_memory_bytes)} free, "
        f"{'bf16' if machine.native_bf16 else 'no bf16'}"
    )
    if not machine.cuda_build:
        return Check("gpu", "missing", f"{said}; torch is a build without CUDA", "Install torch with CUDA")
    return Check("gpu", "ok", said)


def processor(machine: hardware.Machine) -> Check:
    """Threads a process may use, and native bf16."""
    kind = (
        "multiplies bf16 itself" if machine.native_bf16 or machine.gpu_name else "no native bf16, so it trains in fp32"
    )
    return Check("processor", "ok", f"{machine.cores} threads; {kind}")


def memory(machine: hardware.Machine) -> Check:
    """Memory that is free for a process."""
    said = f"{_gib(machine.available_bytes)} of {_gib(machine.memory_bytes)} free"
    if machine.available_bytes < SPARE_MEMORY_BYTES:
        return Check("memory", "note", said, "End other programs; tunesmith plan says what a run needs")
    return Check("memory", "ok", said)


def disk(name: str, folder: Path) -> Check:
    """Space that is free where a folder lies or would lie."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    said = f"{_gib(free)} free in {folder}"
    if free < SPARE_DISK_BYTES:
        return Check(f"disk {name}", "note", said, "Free some space: checkpoints of full tuning are large")
    return Check(f"disk {name}", "ok", said)


def writable(folder: Path) -> Check:
    """Whether the cache can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return Check("cache", "ok", f"{folder} can be written")
    except OSError as error:
        return Check("cache", "missing", f"{folder} cannot be written: {error.strerror}", "Set TUNESMITH_CACHE")


def model() -> Check:
    """Whether the embedded model is at hand without a network."""
    state = embedded.state()
    if state == "ready":
        return Check("embedded model", "ok", "ready in the cache")
    if state == "packed":
        return Check("embedded model", "ok", "its wheel is installed; it is unpacked on first use")
    return Check("embedded model", "missing", "its wheel is not installed", embedded.INSTALL)


def hubs(seconds: float) -> list[Check]:
    """Whether model hubs can be reached. Being offline is a statement, no failure."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return [
            Check("hub", "ok", "HF_HUB_OFFLINE is set: only local models and what is in the hub's own cache are used")
        ]
    address = _hub_address()
    if not address:
        return [Check("hub", "note", "huggingface_hub is not installed, so no hub is asked")]
    reason = reach(address, seconds)
    if not reason:
        return [Check("hub", "ok", f"{address} answers")]
    said = f"{address} cannot be reached ({reason}); local models and the embedded one work all the same"
    return [
        Check("hub", "note", said, "Set HF_HUB_OFFLINE=1 so that nothing waits for it, or HF_ENDPOINT for a mirror")
    ]


def _hub_address() -> str:
    if os.environ.get("HF_ENDPOINT"):
        return os.environ["HF_ENDPOINT"]
    try:
        from huggingface_hub import constants
    except ModuleNotFoundError:
        return ""
    return constants.ENDPOINT


def reach(address: str, seconds: float) -> str:
    """Ask an address; empty where anything answers, else why not. Never takes longer than `seconds`.

    A thread asks, since looking up a name has no time limit of its own.
    """
    outcome: list[str] = []

    def ask() -> None:
        try:
            request.urlopen(request.Request(address, method="HEAD"), timeout=seconds).close()  # noqa: S310 - the person's own
            outcome.append("")
        except HTTPError:
            outcome.append("")  # it answered
        except (OSError, ValueError) as error:
            outcome.append(str(getattr(error, "reason", error)))

    thread = threading.Thread(target=ask, daemon=True, name="hub")
    thread.start()
    thread.join(seconds)
    return outcome[0] if outcome else f"no answer within {seconds:g} s"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
