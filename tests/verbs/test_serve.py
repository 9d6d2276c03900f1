"""The verb as a process: ports, keys, signals; and the server that the quickstart uses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.conftest import write_tiny_model
from tunesmith.cli import main
from tunesmith.core import files
from tunesmith.core.errors import ModelError, UsageError
from tunesmith.core.run import EVENTS, RESULT
from tunesmith.engines.auto import Auto
from tunesmith.engines.echo import Echo
from tunesmith.engines.transformers import Transformers
from tunesmith.models.load import PACKAGE, find
from tunesmith.verbs.serve import (
    ServeConfig,
    answer_over_http,
    check_whole,
    local_server,
    name_of,
    open_engine,
    read_key,
)

ASK = {"model": "parrot", "messages": [{"role": "user", "content": " ".join(["word"] * 20)}], "stream": True}
SLOW = ("--engine.kind", "echo", "--engine.delay_seconds", "0.1")


@contextmanager
def process(out: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`tunesmith serve parrot` as a process, with its address once it is ready."""
    env = {**os.environ, "TUNESMITH_API_KEY": ""}
    command = [sys.executable, "-m", "tunesmith", "serve", "parrot", *words, "--port", "0", "--out", str(out)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    try:
        lines = []
        assert server.stdout
        for line in server.stdout:  # ends when the process does
            lines.append(line)
            if "answers at" in line:
                break
        ready = [event for event in events(out) if event["event"] == "ready"]
        assert ready, "".join(lines)
        yield server, ready[0]["address"]
    finally:
        server.kill()
        server.wait()


def events(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / EVENTS).read_text(encoding="utf-8").splitlines()]


def ready_status(address: str) -> int:
    return httpx2.get(f"{address}/health/ready", trust_env=False).status_code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(tmp_path, number):
    with process(tmp_path / "run", *SLOW) as (server, address):
        assert ready_status(address) == 200
        with httpx2.stream("POST", f"{address}/v1/chat/completions", json=ASK, trust_env=False) as response:
            pieces = response.iter_raw()
            next(pieces)
            server.send_signal(number)
            while ready_status(address) == 200:
                time.sleep(0.01)
            assert ready_status(address) == 503
            assert httpx2.get(f"{address}/health/live", trust_env=False).status_code == 200
            refused = httpx2.post(f"{address}/v1/chat/completions", json=ASK, trust_env=False)
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            assert b"[DONE]" in b"".join(pieces)
        assert server.wait(5) == 0
    result = files.read_json(tmp_path / "run" / RESULT)
    assert (result["address"], result["engine"], result["model"], result["requests"]) == (address, "echo", "parrot", 1)


def test_a_second_signal_ends_it_now(tmp_path):
    with process(tmp_path / "run", *SLOW) as (server, address):
        long = {**ASK, "messages": [{"role": "user", "content": "word " * 600}]}
        with httpx2.stream("POST", f"{address}/v1/chat/completions", json=long, trust_env=False) as response:
            pieces = response.iter_raw()
            next(pieces)
            server.send_signal(signal.SIGTERM)
            while ready_status(address) == 200:
                time.sleep(0.01)
            started = time.monotonic()
            server.send_signal(signal.SIGTERM)
            assert server.wait(10) == 0
            assert time.monotonic() - started < 4


def test_answers_that_do_not_end_in_time_are_broken_off_with_an_error(tmp_path):
    with process(tmp_path / "run", *SLOW, "--limits.stop_seconds", "0.3") as (server, address):
        long = {**ASK, "messages": [{"role": "user", "content": "word " * 600}]}
        with httpx2.stream("POST", f"{address}/v1/chat/completions", json=long, trust_env=False) as response:
            pieces = response.iter_raw()
            next(pieces)
            server.send_signal(signal.SIGTERM)
            assert b"is stopping" in b"".join(pieces)
        assert server.wait(5) == 0


def test_a_port_that_is_taken_ends_it_before_anything_is_loaded(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # a model that does not exist: the port is looked at first
        assert main(["serve", "/no/such/model", "--port", str(port), "--out", str(tmp_path / "run")]) == 6
    assert (
        capsys.readouterr().err.strip()
        == f"port {port}: is taken on 127.0.0.1. Choose another --port, or 0 for a free one."
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("host", ["0.0.0.0", "'::'", "192.0.2.7"])
def test_an_open_address_needs_a_key(host, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("TUNESMITH_API_KEY", raising=False)
    assert main(["serve", "parrot", "--engine.kind", "echo", "--host", host, "--out", str(tmp_path / "run")]) == 2
    assert "needs an API key" in capsys.readouterr().err


def test_an_address_that_is_not_of_this_machine(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TUNESMITH_API_KEY", "k")
    assert (
        main(["serve", "parrot", "--engine.kind", "echo", "--host", "192.0.2.7", "--out", str(tmp_path / "run")]) == 2
    )
    assert "host: cannot be listened on" in capsys.readouterr().err


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_API_KEY", "of the environment")
    assert read_key(None) == "of the environment"
    (tmp_path / "key").write_text("of-the-file\nsecond line\n")
    assert read_key(tmp_path / "key") == "of-the-file"
    (tmp_path / "empty").write_text("\n")
    for path in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(UsageError):
            read_key(path)


def packed(folder: Path) -> Path:
    """A package with safetensors, as export makes it."""
    with files.new_folder(folder) as made:
        write_tiny_model(made / "model")
        files.write_json(made / PACKAGE, {"name": "lamp-expert", "weights": "model"})
    return folder


def test_a_damaged_package_is_refused_before_it_is_loaded(tmp_path):
    package = packed(tmp_path / "package")
    check_whole(find(str(package)))
    weights = package / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(ModelError, match="has a damaged model/model.safetensors"):
        check_whole(find(str(package)))
    with pytest.raises(ModelError, match="damaged"):
        open_engine(ServeConfig(model=str(package)))
    weights.unlink()
    with pytest.raises(ModelError, match="lacks|no safetensors"):
        open_engine(ServeConfig(model=str(package)))


def test_names_show_no_folders(tmp_path):
    package = packed(tmp_path / "package")
    assert name_of(str(package), find(str(package))) == "lamp-expert"
    shutil.copytree(package / "model", tmp_path / "plain")
    assert name_of(str(tmp_path / "plain"), find(str(tmp_path / "plain"))) == "plain"
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert name_of(str(tmp_path / "x.gguf"), find(str(tmp_path / "x.gguf"))) == "x"


def test_a_package_answers_over_http_from_inside_a_program(tmp_path):
    package = packed(tmp_path / "package")
    engine = Transformers(precision="fp32", threads=1)
    with local_server(ServeConfig(model=str(package), engine=engine)) as (address, name):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        said = client.chat.completions.create(model=name, messages=[{"role": "user", "content": "hi"}], max_tokens=3)
        assert (name, said.usage.completion_tokens) == ("lamp-expert", 3)
    with pytest.raises(openai.APIConnectionError):
        client.models.list()
    assert isinstance(answer_over_http(package, "hi"), str)


def test_a_server_passes_on_to_another_one():
    parrot = ServeConfig(model="parrot", engine=Echo())
    with local_server(parrot) as (first, _), local_server(ServeConfig(model=first, engine=Auto())) as (second, name):
        client = openai.OpenAI(base_url=f"{second}/v1", api_key="none", max_retries=0)
        said = client.chat.completions.create(model=name, messages=[{"role": "user", "content": "a b"}])
    assert (name, said.choices[0].message.content) == ("parrot", "a b")


def test_a_server_that_cannot_start_raises_in_the_program():
    with pytest.raises(ModelError), local_server(ServeConfig(model="/no/such/folder")):
        pass
