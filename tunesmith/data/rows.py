"""Files into rows: json, jsonl, csv, tsv, parquet and txt become dicts with the place they came from. Knows no layout."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tunesmith.core import files
from tunesmith.core.errors import DataError

Row = dict[str, Any]
ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt")


def read_rows(paths: Sequence[str]) -> Iterator[tuple[Row, str]]:
    """Yield every row with its place ("faq.jsonl:17": the line in jsonl, the row from 1 elsewhere).

    A folder means all data files in it, by name. Raises DataError for a missing, empty or broken file.
    """
    for path in data_files(paths):
        empty = True
        for number, row in _read(path):
            empty = False
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}:{number}", "a row must be an object with named columns", got=type(row).__name__
                )
            yield row, f"{path.name}:{number}"
        if empty:
            raise DataError(str(path), "holds no rows", do="Put at least one row into it")


def data_files(paths: Sequence[str]) -> Iterator[Path]:
    """The files that paths mean, in the order in which they are read. Raises DataError for what is none."""
    for typed in paths:
        path = Path(typed).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix in ENDINGS)
            if not inside:
                raise DataError(typed, "is a folder without data files", do=f"Wanted: {', '.join(ENDINGS)}")
            yield from inside
        elif not path.is_file():
            raise DataError(typed, "no such file or folder")
        elif path.suffix not in ENDINGS:
            raise DataError(
                typed, "is of no kind that can be read", got=path.suffix, do=f"Wanted: {', '.join(ENDINGS)}"
            )
        else:
            yield path


def _read(path: Path) -> Iterator[tuple[int, Any]]:
    if path.stat().st_size == 0:
        raise DataError(str(path), "is empty", do="Put at least one row into it")
    if path.suffix == ".jsonl":
        yield from files.read_jsonl(path)
    elif path.suffix == ".json":
        document = files.read_json(path)
        if not isinstance(document, list):
            raise DataError(str(path), "must be a list of rows", got=type(document).__name__)
        yield from enumerate(document, 1)
    elif path.suffix == ".txt":
        yield 1, {"text": _text(path)}
    elif path.suffix == ".parquet":
        yield from _parquet(path)
    else:
        yield from _table(path, "\t" if path.suffix == ".tsv" else ",")


def _text(path: Path) -> str:
    """A file of plain text is one document."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(str(path), "is not UTF-8 text", do="Save it as UTF-8") from None


def _table(path: Path, separator: str) -> Iterator[tuple[int, Row]]:
    csv.field_size_limit(1 << 27)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=separator, strict=True)
            twice = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]
            if twice:
                raise DataError(f"{path}:1", "the header names a column twice", got=twice[0], do="Rename one of them")
            for number, row in enumerate(reader, 1):
                if None in row or None in row.values():
                    raise DataError(f"{path}:{number}", "has more or fewer cells than the header names")
                yield number, dict(row)
    except csv.Error as error:
        raise DataError(str(path), f"not a valid table: {error}") from None
    except UnicodeDecodeError:
        raise DataError(str(path), "is not UTF-8 text", do="Save it as UTF-8") from None


def _parquet(path: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow as arrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path)
        number = 0
        for block in table.iter_batches():
            for row in block.to_pylist():
                number += 1
                yield number, row
    except arrow.ArrowInvalid as error:
        raise DataError(str(path), f"not a valid parquet file: {str(error).splitlines()[0]}") from None
