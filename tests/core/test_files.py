"""Folders that are complete or absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tunesmith.core import files
from tunesmith.core.errors import CapacityError, DataError


def fill(target: Path) -> None:
    with files.new_folder(target, made_by="test") as folder:
        (folder / "a.txt").write_text("a" * 1000, encoding="utf-8")
        (folder / "deep").mkdir()
        (folder / "deep" / "b.txt").write_text("b", encoding="utf-8")


def test_a_folder_appears_whole_with_its_manifest(tmp_path):
    fill(tmp_path / "made")
    assert files.verify(tmp_path / "made") is None
    manifest = files.read_json(tmp_path / "made" / files.MANIFEST)
    assert manifest["made_by"] == "test"
    assert sorted(manifest["files"]) == ["a.txt", "deep/b.txt"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "a.txt").unlink(), "lacks a.txt"),
        (lambda f: (f / "a.txt").write_text("b" * 1000), "damaged a.txt"),
        (lambda f: (f / files.MANIFEST).unlink(), "no manifest"),
        (lambda f: (f / files.MANIFEST).write_text("{"), "broken manifest"),
    ],
)
def test_damage_is_seen(tmp_path, damage, said):
    fill(tmp_path / "made")
    damage(tmp_path / "made")
    assert said in (files.verify(tmp_path / "made") or "")


def test_at_whatever_call_the_disk_fails_nothing_is_left(tmp_path, monkeypatch):
    """Fail the n-th fsync, rename or write, for every n until the folder is made."""
    for n in range(1, 60):
        calls = 0

        def failing(real, n=n):
            def call(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == n:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("fsync", "rename", "replace", "open"):
                patch.setattr(os, name, failing(getattr(os, name)))
            patch.setattr(Path, "write_text", failing(Path.write_text))
            try:
                fill(tmp_path / "made")
            except CapacityError as error:
                assert "No space left on device" in str(error)
            else:
                break
        # a failing last fsync comes after the rename: then the folder is whole
        if (tmp_path / "made").exists():
            assert files.verify(tmp_path / "made") is None
            __import__("shutil").rmtree(tmp_path / "made")
        assert list(tmp_path.iterdir()) == []
    assert n > 5
    assert files.verify(tmp_path / "made") is None


def test_write_text_replaces_at_once(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
    with pytest.raises(OSError, match="broken"):
        files.write_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_broken_json_names_its_line(tmp_path):
    (tmp_path / "x.json").write_text('{\n"a": \n}', encoding="utf-8")
    with pytest.raises(DataError, match=r"x.json:3: not valid JSON"):
        files.read_json(tmp_path / "x.json")
