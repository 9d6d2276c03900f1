"""Models by name: what is not there is said in one line; a stand-in hub on loopback serves the real client."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from tunesmith.core import hub
from tunesmith.core.errors import MissingExtra, ModelError


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "no-such-model"])
def test_a_missing_folder_is_one_line(name):
    with pytest.raises(ModelError, match="no such model folder"):
        hub.locate(name)


def test_a_folder_is_itself(tmp_path):
    assert hub.locate(str(tmp_path)) == tmp_path


FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights",
    "evil.bin": b"pickle",
    "code.py": b"x",
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class StandIn(BaseHTTPRequestHandler):
    """Just enough of a hub for snapshot_download."""

    asked: list[str] = []

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, *, body: bool):
        StandIn.asked.append(self.path)
        path = self.path.split("?")[0]
        if path.startswith("/api/v1/"):
            self._model_scope()
        elif path.startswith("/api/models/me/tiny"):
            listed = [
                {"type": "file", "path": n, "rfilename": n, "size": len(d), "oid": "0" * 40} for n, d in FILES.items()
            ]
            info = {"_id": "1", "id": "me/tiny", "sha": COMMIT, "siblings": listed, "private": False}
            self._send(json.dumps(listed if "/tree/" in path else info).encode(), body, "application/json")
        elif path.startswith("/me/tiny/resolve/") and path.rsplit("/", 1)[1] in FILES:
            name = path.rsplit("/", 1)[1]
            self._send(FILES[name], body, "application/octet-stream", {"X-Repo-Commit": COMMIT, "ETag": f'"{name}"'})
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _model_scope(self):
        query = parse_qs(urlsplit(self.path).query)
        if self.path.startswith("/api/v1/models/me/tiny/repo/files"):
            listed = [
                {"Path": name, "Name": name, "Type": "blob", "Size": len(data), "Sha256": sha256(data).hexdigest()}
                for name, data in FILES.items()
            ]
            self._send(
                json.dumps({"Code": 200, "Success": True, "Data": {"Files": listed}}).encode(), True, "application/json"
            )
        elif self.path.startswith("/api/v1/models/me/tiny/repo?"):
            self._send(FILES[query["FilePath"][0]], True, "application/octet-stream")
        else:
            self._send(json.dumps({"Code": 404, "Success": False}).encode(), True, "application/json", status=404)

    def _send(self, data: bytes, body: bool, kind: str, more: dict[str, str] | None = None, status: int = 200):
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(more or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def stand_in():
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def locate_in_child(name: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """huggingface_hub reads its variables at import, so each case has its own process."""
    code = (
        "import sys\nfrom tunesmith.core import hub, errors\n"
        "try:\n    print(hub.locate(sys.argv[1]))\nexcept errors.TunesmithError as e:\n    print(e); sys.exit(e.exit_code)"
    )
    keep = {"PATH": "/usr/bin:/bin", "HOME": str(home), "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, name],
        env={**keep, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_endpoint_is_honoured_and_only_safe_files_come(stand_in, tmp_path):
    for name in ("hf:me/tiny", "me/tiny"):
        done = locate_in_child(name, tmp_path / name.replace(":", "-"), HF_ENDPOINT=stand_in)
        assert done.returncode == 0, done.stdout + done.stderr
        assert sorted(p.name for p in Path(done.stdout.strip()).iterdir()) == ["config.json", "model.safetensors"]


def test_offline_uses_the_cache_and_says_when_it_lacks(stand_in, tmp_path):
    done = locate_in_child("hf:me/tiny", tmp_path, HF_ENDPOINT=stand_in, HF_HUB_OFFLINE="1")
    assert done.returncode == ModelError.exit_code
    assert "is not in the local cache" in done.stdout
    assert done.stdout.count("\n") == 1
    locate_in_child("hf:me/tiny", tmp_path, HF_ENDPOINT=stand_in)
    StandIn.asked.clear()
    again = locate_in_child("hf:me/tiny", tmp_path, HF_ENDPOINT=stand_in, HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stdout
    assert StandIn.asked == []


def test_an_unknown_id_is_one_line(stand_in, tmp_path):
    done = locate_in_child("hf:me/unknown", tmp_path, HF_ENDPOINT=stand_in)
    assert done.returncode == ModelError.exit_code
    assert "no such model on the hub" in done.stdout
    assert "Traceback" not in done.stderr


def model_scope(address: str, home: Path, name: str) -> subprocess.CompletedProcess[str]:
    where = {"MODELSCOPE_ENDPOINT": address, "MODELSCOPE_CACHE": str(home / "ms")}
    return locate_in_child(name, home, **where)


def test_model_scope_brings_safe_files_only(stand_in, tmp_path):
    done = model_scope(stand_in, tmp_path, "ms:me/tiny")
    assert done.returncode == 0, done.stdout + done.stderr
    brought = {p.name: p.read_bytes() for p in Path(done.stdout.splitlines()[-1]).iterdir() if p.name in FILES}
    assert brought == {name: FILES[name] for name in ("config.json", "model.safetensors")}


def test_an_id_that_model_scope_does_not_know_is_one_line(stand_in, tmp_path):
    done = model_scope(stand_in, tmp_path, "ms:me/unknown")
    assert done.returncode == ModelError.exit_code
    assert "no such model on ModelScope" in done.stdout
    assert "Traceback" not in done.stderr


def test_without_modelscope_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(MissingExtra, match="modelscope"):
        hub.locate("ms:me/tiny")
