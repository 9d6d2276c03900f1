"""What the files of a folder hold, without loading it: tensors by name, and the identity of the weights. Knows no model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tunesmith.core.errors import ModelError

PIECES, PIECE_BYTES = 16, 256
"""Of each tensor that a fingerprint reads, spread evenly: a training changes some of them in every tensor it moves."""


def weights_fingerprint(folder: Path) -> str:
    """Identity of a model's weights: sha256 over every safetensors header and PIECES places of every tensor.

    Reads a few MiB whatever the size of the model. Trainings of one architecture differ in it, whichever layers they change;
    one that moves a few rows of an embedding and nothing else may not. Raises ModelError for a file that is cut off.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        tensors, start = tensors_in(path)
        digest.update(json.dumps(tensors, sort_keys=True).encode())
        with path.open("rb") as file:
            for name in sorted(tensors):
                first, end = tensors[name]["data_offsets"]
                for place in _places(end - first):
                    file.seek(start + first + place)
                    digest.update(file.read(min(PIECE_BYTES, end - first - place)))
    return digest.hexdigest()


def _places(size: int) -> list[int]:
    """Where the pieces of a tensor of `size` bytes begin; of a small one they follow each other to its end."""
    if size <= PIECES * PIECE_BYTES:
        return list(range(0, size, PIECE_BYTES))
    return [number * (size - PIECE_BYTES) // (PIECES - 1) for number in range(PIECES)]


def tensors_in(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file without its notes, and where its data begins, in bytes.

    Raises ModelError for a file that is cut off: what is left of it may still look like weights.
    """
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        try:
            tensors = json.loads(file.read(start - 8)) if start <= size else {}
        except ValueError:
            tensors = {}
    tensors.pop("__metadata__", None)
    if start + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=size) != size:
        raise ModelError(str(path), "is cut off or no safetensors file", got=f"{size} bytes", do="Fetch it again")
    return tensors, start
