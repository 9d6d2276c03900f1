"""Answer over HTTP with the OpenAI API, and a chat page at /."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tunesmith.core import files, hub
from tunesmith.core.config import Config
from tunesmith.core.errors import MissingExtra, ModelError, ServiceError, UsageError
from tunesmith.engines import EngineConfig
from tunesmith.engines.auto import Auto, is_address
from tunesmith.serving.admission import Limits

if TYPE_CHECKING:
    from tunesmith.core.artifacts import Service
    from tunesmith.core.run import Run
    from tunesmith.engines.contract import Engine
    from tunesmith.models.load import Found

SUBJECT = "model"
KEY_VARIABLE = "TUNESMITH_API_KEY"


class ServeConfig(Config):
    """What to serve, where, and how much of it."""

    model: str
    """A package, run, checkpoint, .gguf file, folder, embedded, hf:ID, ms:ID, or the address of a server to pass on to."""
    engine: EngineConfig = Auto()
    """What generates; auto takes llama_cpp for GGUF and transformers for safetensors."""
    host: str = "127.0.0.1"
    """Address to listen on. Any other than this machine's own needs a key: TUNESMITH_API_KEY or key_file."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one."""
    name: Annotated[str, Field(pattern=r"^[\w.:/-]{1,200}$")] | None = None
    """Name that clients give as `model`; null takes the name of the package, run or model."""
    key_file: Path | None = None
    """File whose first line is the API key; null takes the environment variable TUNESMITH_API_KEY, or no key."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Temperature of requests that name none; 0 answers as the evaluation does."""
    verify: bool = True
    """Check the files of a package or checkpoint against its manifest before loading it."""
    limits: Limits = Limits()
    """What the server takes on."""


def preview(config: ServeConfig) -> str:
    """What would happen, in words."""
    return f"serve {config.model} with engine {config.engine.kind} on {config.host} port {config.port}"


def run(config: ServeConfig, run: Run) -> Service:
    """Serve until a signal ends it.

    Raises ServiceError when the port is taken, UsageError for an open address without a key, ModelError for a
    model that is damaged or cannot be loaded.
    """
    import asyncio

    from tunesmith.core.artifacts import Service

    _need_libraries()
    from tunesmith.serving.app import Serving, make_app
    from tunesmith.serving.security import is_loopback
    from tunesmith.serving.server import Server, address_of, bind
    from tunesmith.serving.server import run as run_server

    key, local = read_key(config.key_file), is_loopback(config.host)
    if not local and not key:
        do = f"Set {KEY_VARIABLE} or key_file, or listen on 127.0.0.1"
        raise UsageError("host", "an address that others can reach needs an API key", got=config.host, do=do)
    listener = bind(config.host, config.port)
    address, started = address_of(listener), time.time()
    run.say(f"loading {config.model}")
    engine, name = open_engine(config)
    run.say(f"engine {engine.name}, {engine.at_once} answers side by side", style="dim")
    serving = Serving(engine, config.name or name, config.limits, config.temperature)

    def ready() -> None:
        run.event("ready", address=address, model=serving.model, engine=engine.name)
        run.say(
            f"{serving.model} answers at {address} (API: {address}/v1, chat page: {address}/). Ctrl-C stops it.",
            style="bold",
        )

    server = Server(make_app(serving, key=key, local_only=local), serving, ready)
    asyncio.run(run_server(server, serving, listener))
    answered = serving.admission.answered
    run.say(f"stopped; {answered} requests answered")
    return Service(address, engine.name, serving.model, answered, round(time.time() - started, 3))


def open_engine(config: ServeConfig) -> tuple[Engine, str]:
    """The engine for the model, and the name clients will use."""
    from tunesmith.models.load import find

    if config.engine.kind in {"remote", "echo"} or is_address(config.model):
        engine = config.engine.open(config.model)
        return engine, engine.model
    found = find(config.model)
    if config.verify:
        check_whole(found)
    return config.engine.open(found), name_of(config.model, found)


def name_of(model: str, found: Found) -> str:
    """A name without folders: that of the package, else the last part of what was typed."""
    if Path(model).exists() and Path(found.name).exists():
        path = Path(model).resolve()
        return path.stem if path.suffix == ".gguf" else path.name
    return found.name.removeprefix("hf:").removeprefix("ms:")


def check_whole(found: Found) -> None:
    """Compare a package or checkpoint with its manifest. Raises ModelError when a file is missing or damaged."""
    places = [found.adapter, found.gguf and found.gguf.parent, found.base, found.base.parent]
    folder = next((place for place in places if place and (place / files.MANIFEST).is_file()), None)
    if folder is None or hub.cache_folder() in folder.parents:  # the cache was checked when it was made
        return
    if wrong := files.verify(folder):
        raise ModelError(str(folder), wrong, do="Export or copy it again")


def read_key(key_file: Path | None) -> str | None:
    """The API key out of a file or the environment. Raises UsageError when the file gives none."""
    if key_file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key = key_file.read_text(encoding="utf-8").partition("\n")[0].strip()
    except OSError as error:
        raise UsageError("key_file", f"cannot be read: {error.strerror}", got=str(key_file)) from None
    if not key:
        raise UsageError("key_file", "has no key in its first line", got=str(key_file))
    return key


@contextmanager
def local_server(config: ServeConfig) -> Iterator[tuple[str, str]]:
    """A server on a free loopback port in a thread of this process; yields (address, name), ends it on leaving."""
    _need_libraries()
    from tunesmith.serving.app import Serving, make_app
    from tunesmith.serving.server import bind, in_background

    engine, name = open_engine(config)
    serving = Serving(engine, config.name or name, config.limits, config.temperature)
    with in_background(lambda: (make_app(serving), serving), bind("127.0.0.1", 0)) as address:
        yield address, serving.model


def answer_over_http(model: str | Path, question: str) -> str:
    """Serve a model, ask it one question through the OpenAI API, stop the server; the answer's text."""
    with local_server(ServeConfig(model=str(model))) as (address, name):
        import httpx2

        body = {"model": name, "messages": [{"role": "user", "content": question}], "max_tokens": 256}
        with httpx2.Client(base_url=address, timeout=300, trust_env=False) as client:
            response = client.post("/v1/chat/completions", json=body)
    if response.status_code != 200:
        raise ServiceError(address, f"answered HTTP {response.status_code}: {response.text[:200]}")
    return str(response.json()["choices"][0]["message"]["content"])


def _need_libraries() -> None:
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra("serve", f"needs {error.name}", do="pip install 'tunesmith[serve]'") from None
