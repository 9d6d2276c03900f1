"""The machine against what Tunesmith asks: each line by what it would say of another machine."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from tunesmith.core.hardware import Machine
from tunesmith.planning import checkup

GIB = 2**30
MACHINE = Machine(cores=2, memory_bytes=16 * GIB, available_bytes=12 * GIB)


def test_the_machine_that_runs_the_tests_lacks_nothing_it_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    checks = checkup.checkup(tmp_path / "run", 0.5)
    states = {check.name: check.state for check in checks}
    assert states["python"] == states["core"] == states["train"] == states["cache"] == "ok"
    assert all(check.said for check in checks)
    assert all(check.do for check in checks if check.state == "missing")


def test_a_library_that_is_missing_or_too_old_is_named(monkeypatch):
    known = {"torch": "2.1.0", "peft": None}
    real = checkup._version
    monkeypatch.setattr(checkup, "_version", lambda name: known.get(name, real(name)))
    (train,) = [check for check in checkup.libraries() if check.name == "train"]
    assert train.state == "missing"
    assert "torch 2.1.0, wanted" in train.said
    assert "peft is not here" in train.said
    assert "pip install 'tunesmith[train]'" in train.do


def test_a_local_build_counts_as_its_version(monkeypatch):
    monkeypatch.setattr(checkup, "_version", lambda name: "2.13.0+cpu" if name == "torch" else "1")
    (train,) = [check for check in checkup.libraries() if check.name == "train"]
    assert "torch" not in train.said


@pytest.mark.parametrize(
    ("version", "state"),
    [("3.40.1", "note"), ("3.44.6", "ok"), ("3.50.6", "note"), ("3.50.7", "ok"), ("3.51.2", "note"), ("3.53.0", "ok")],
)
def test_sqlite_releases_that_lose_commits(monkeypatch, version, state):
    monkeypatch.setattr(checkup.sqlite3, "sqlite_version", version)
    assert checkup.sqlite().state == state


def test_gpu_or_none(monkeypatch):
    assert checkup.gpu(MACHINE).said == "none; training runs on the processor"
    assert not checkup.gpu(MACHINE).do
    assert "torch is a build for CUDA" in checkup.gpu(replace(MACHINE, cuda_build=True)).said
    monkeypatch.setattr(
        checkup.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout="580.65.06\n")
    )
    machine = Machine(2, 16 * GIB, 12 * GIB, "Test GPU", 24 * GIB, 20 * GIB, native_bf16=True)
    some = checkup.gpu(machine)
    assert some.state == "missing"
    assert some.said.startswith("Test GPU, driver 580.65.06, 20.0 GiB of 24.0 GiB free, bf16; torch is a build without")
    assert checkup.gpu(replace(machine, cuda_build=True)).state == "ok"


def test_little_memory_and_disk_are_said(monkeypatch, tmp_path):
    assert checkup.memory(MACHINE).state == "ok"
    assert checkup.memory(Machine(2, 4 * GIB, GIB)).state == "note"
    monkeypatch.setattr(checkup, "SPARE_DISK_BYTES", 1 << 60)
    assert checkup.disk("cache", tmp_path / "not" / "there" / "yet").state == "note"


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    check = checkup.writable(tmp_path / "file" / "cache")
    assert check.state == "missing"
    assert "TUNESMITH_CACHE" in check.do


def test_the_embedded_model_absent_packed_or_ready(monkeypatch, tmp_path):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    target = checkup.embedded._target()
    assert checkup.model().state == ("ok" if checkup._version(checkup.embedded.WHEEL) else "missing")
    monkeypatch.setattr(checkup.embedded, "WHEEL", "no-such-wheel-of-ours")
    assert checkup.model().do == checkup.embedded.INSTALL
    target.mkdir(parents=True)
    (target / "manifest.json").write_text("{}")
    assert checkup.model().said == "ready in the cache"


def test_offline_is_a_statement(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (check,) = checkup.hubs(0.1)
    assert (check.state, "HF_HUB_OFFLINE" in check.said) == ("ok", True)


@pytest.fixture
def server():
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(404)  # an answer is an answer
            self.end_headers()

        def log_message(self, *_):
            pass

    made = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()


def test_a_hub_that_answers(server, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server)
    assert checkup.hubs(5) == [checkup.Check("hub", "ok", f"{server} answers")]


def test_a_hub_that_never_answers_is_waited_for_no_longer_than_asked(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        (check,) = checkup.hubs(0.3)
        assert time.monotonic() - started < 2
    assert check.state == "note"
    assert "cannot be reached" in check.said


def test_a_closed_port_and_a_wrong_address_are_reasons():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert checkup.reach(f"http://127.0.0.1:{port}", 5)
    assert checkup.reach("not an address", 5)


def test_the_checkup_loads_no_torch():
    code = "import sys; from pathlib import Path; from tunesmith.planning.checkup import checkup; checkup(Path('.'), 0.1); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
