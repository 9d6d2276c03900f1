"""A socket, uvicorn on it, and an orderly end: readiness off, running answers finish, then the process goes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn

from tunesmith.core.errors import ServiceError, UsageError

if TYPE_CHECKING:
    from types import FrameType

    from tunesmith.serving.app import Serving
    from tunesmith.serving.security import Guard


def bind(host: str, port: int) -> socket.socket:
    """Take the port now, before anything heavy is loaded; 0 takes a free one. Clients that come early wait.

    Raises ServiceError when the port is taken or not allowed, UsageError when the host is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ServiceError(
                f"port {port}", f"is taken on {host}", do="Choose another --port, or 0 for a free one"
            ) from None
        if error.errno == errno.EACCES:
            raise ServiceError(f"port {port}", "is not allowed", do="Choose a --port above 1023") from None
        raise UsageError("host", f"cannot be listened on: {error.strerror or error}", got=host) from None
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket) -> str:
    """The http address of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn that drains before it closes: the first signal ends it in order, the second at once."""

    def __init__(self, app: Guard, serving: Serving, ready: Callable[[], object]) -> None:
        super().__init__(
            uvicorn.Config(
                app, log_config=None, access_log=False, server_header=False, lifespan="off", timeout_graceful_shutdown=2
            )
        )  # fmt: skip
        self._serving, self._ready = serving, ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, then say so."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """A signal came. Not raised again afterwards: the verb ends normally and writes its result."""
        self.stop()

    def stop(self) -> None:
        """End in order; called again, end at once. May be called from any thread."""
        if self._serving.admission.draining or self._loop is None:
            self.should_exit = self.force_exit = True
            if self._loop:
                self._loop.call_soon_threadsafe(self._serving.closing.set)
            return
        self._serving.admission.drain()
        self._loop.call_soon_threadsafe(self._start_drain)

    def _start_drain(self) -> None:
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        """Wait until the last answer has ended, or break them off when the time is over."""
        try:
            async with asyncio.timeout(self._serving.limits.stop_seconds):
                await self._serving.admission.empty.wait()
        except TimeoutError:
            self._serving.closing.set()
        self.should_exit = True  # uvicorn lets go of connections when their last bytes are sent


async def run(server: Server, serving: Serving, listener: socket.socket) -> None:
    """Answer on a listening socket until the server is stopped; then close the engine."""
    try:
        await server.serve(sockets=[listener])
    finally:
        await serving.engine.close()


@contextmanager
def in_background(make: Callable[[], tuple[Guard, Serving]], listener: socket.socket) -> Iterator[str]:
    """A server in a thread of this process; yields its address once it answers, ends it on leaving.

    `make` is called in the thread. What it raises is raised here.
    """
    ready = threading.Event()
    held: dict[str, Any] = {}

    def work() -> None:
        try:
            app, serving = make()
            server = held["server"] = Server(app, serving, ready.set)
            asyncio.run(run(server, serving, listener))
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            held["error"] = error
        finally:
            ready.set()

    thread = threading.Thread(target=work, name="server", daemon=True)
    thread.start()
    ready.wait()
    try:
        if "error" in held:
            raise held["error"]
        yield address_of(listener)
    finally:
        if "server" in held:
            with contextlib.suppress(RuntimeError):  # its loop is closed: it has ended by itself
                held["server"].stop()
        thread.join()
        listener.close()
