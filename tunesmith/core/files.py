"""Files that are complete or absent: JSON and JSONL, atomic and durable writes, hashes, manifests."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from tunesmith.core.errors import CapacityError, DataError

MANIFEST = "manifest.json"


def read_json(path: Path) -> Any:
    """Read one JSON document. Raises DataError naming the line that is broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}", f"not valid JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise DataError(str(path), "is not UTF-8 text", do="Save it as UTF-8") from None
    except RecursionError:
        raise DataError(str(path), "is nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise DataError(str(path), f"not valid JSON: {error}") from None


def read_object(path: Path) -> dict[str, Any]:
    """Read one JSON object. Raises DataError as `read_json` does, and for any other document."""
    document = read_json(path)
    if not isinstance(document, dict):
        raise DataError(str(path), "must be an object", got=type(document).__name__)
    return document


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number from 1, document) of every non-empty line. Raises DataError naming the broken line."""
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except json.JSONDecodeError as error:
                        raise DataError(
                            f"{path}:{number}", f"not valid JSON: {error.msg}", do="Mend or remove the line"
                        ) from None
                    except RecursionError:
                        raise DataError(f"{path}:{number}", "is nested too deeply", do="Remove the line") from None
                    except ValueError as error:
                        raise DataError(f"{path}:{number}", f"not valid JSON: {error}", do="Remove the line") from None
    except UnicodeDecodeError:
        raise DataError(str(path), "is not UTF-8 text", do="Save it as UTF-8") from None


def to_json(value: Any, indent: int | None = 2) -> str:
    """JSON text as Tunesmith writes it: UTF-8, paths as text, no NaN."""
    return json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False, default=str)


def write_text(path: Path, text: str) -> None:
    """Replace a file so that a reader sees the old or the new text, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document atomically and durably."""
    write_text(path, to_json(value) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write JSON lines into a new file (inside a folder that is committed afterwards)."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(to_json(row, indent=None) + "\n" for row in rows)


def sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """Hex sha256 of a value's canonical JSON."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def sources_sha256(package: ModuleType) -> str:
    """Hex sha256 over the Python files in a package's folder and those inside: what was computed with other ones may be rounded otherwise."""
    assert package.__file__
    return fingerprint([sha256(path) for path in sorted(Path(package.__file__).parent.rglob("*.py"))])


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def new_folder(target: Path, **facts: Any) -> Iterator[Path]:
    """Fill a folder that becomes visible under `target` only when it is whole.

    Yields a temporary folder beside `target`. On success every file is fsynced, the manifest (names, sizes,
    sha256 and `facts`) is written last, and the folder is renamed; on any error it is removed.
    Raises CapacityError when the disk is full, FileExistsError when `target` is there already.
    """
    if target.exists():
        raise FileExistsError(f"{target} is there already")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        yield temporary
        listed = {}
        for path in sorted(p for p in temporary.rglob("*") if p.is_file()):
            _sync_file(path)
            name = path.relative_to(temporary).as_posix()
            listed[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        write_json(temporary / MANIFEST, {**facts, "files": listed})
        os.rename(temporary, target)
        sync_folder(target.parent)
    except OSError as error:
        raise as_capacity(error, target) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_torn(path: Path) -> bool:
    """Whether a name is that of a write that never came to its end (`x.tmp-1a2b3c4d`, `.x.json.1a2b3c4d`)."""
    return ".tmp-" in path.name or bool(re.fullmatch(r"\..+\.[0-9a-f]{8}", path.name))


def remove_torn(folder: Path) -> None:
    """Remove from a folder what interrupted writes have left; nothing else may be writing there."""
    for path in [path for path in folder.iterdir() if is_torn(path)]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def as_capacity(error: OSError, path: Path) -> Exception:
    """Turn what a full or failing disk says into a CapacityError; any other error is given back."""
    import errno

    space = "Free some space and start again"
    remedies = {
        errno.ENOSPC: space, errno.EFBIG: space, errno.EDQUOT: space,
        errno.EIO: "The disk fails; look at it before you start again",
        errno.EROFS: "Make the file system writable and start again",
    }  # fmt: skip
    if error.errno in remedies:
        return CapacityError(str(path), f"cannot be written: {error.strerror}", do=remedies[error.errno])
    return error


def verify(folder: Path) -> str | None:
    """Check a folder against its manifest. Returns None when whole, else what is wrong in one phrase."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return "has no manifest"
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError, TypeError):
        return "has a broken manifest"
    for name, facts in listed.items():
        path = folder / name
        if not path.is_file():
            return f"lacks {name}"
        if path.stat().st_size != facts["bytes"] or sha256(path) != facts["sha256"]:
            return f"has a damaged {name}"
    return None
