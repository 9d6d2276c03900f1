"""Who may ask: key, Host and Origin, size of the body. Pure ASGI, so that a disconnect still reaches the answer."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fastapi import Request

from tunesmith.serving.protocol import Refused, error_body

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tunesmith.serving.admission import Limits

HEADERS = [
    (b"content-security-policy", b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
     b"img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]  # fmt: skip


class KeyCheck:
    """A dependency for routers: every route below needs the key where there is one."""

    def __init__(self, key: str | None) -> None:
        self._key = key.encode() if key else None

    async def __call__(self, request: Request) -> None:
        """Raises Refused (401) unless the request carries the key."""
        if self._key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key):
            raise Refused("a valid key is needed: Authorization: Bearer KEY", code="invalid_api_key", status=401)


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware before everything else: Host, Origin, body size, request id, headers.

    On a loopback address the Host must be loopback too: a page of another site cannot reach it by making its own name
    point here (DNS rebinding). An Origin, where a browser sends one, must be this server.
    """

    def __init__(self, app: ASGIApp, limits: Limits, *, local_only: bool) -> None:
        self._app, self._limits, self._local_only = app, limits, local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope["state"] = {**scope.get("state", {}), "request_id": request_id}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS, (b"x-request-id", request_id.encode())]
            await send(message)

        headers = dict(scope["headers"])
        try:
            self._check_origin(headers)
            body = await self._read(headers, receive)
        except Refused as error:
            await _answer_error(error, send_with_headers)
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send_with_headers)

    def _check_origin(self, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1")
        name = _host_name(host)
        if not name or (self._local_only and not is_loopback(name)):
            raise Refused("this server answers to its own address only", code="wrong_host", status=403)
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin.decode("latin-1")).netloc != host:
            raise Refused("requests from pages of other sites are not answered", code="wrong_origin", status=403)

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """The body, never more than the limit; None when the client left before its end."""
        said = headers.get(b"content-length", b"0")
        too_large = Refused(f"the body may have {self._limits.body_bytes} bytes", code="body_too_large", status=413)
        if not said.isdigit() or int(said) > self._limits.body_bytes:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > self._limits.body_bytes:
                        raise too_large
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise Refused("the body did not arrive in time", code="body_too_slow", status=408) from None


def _host_name(host: str) -> str:
    """The name in a Host header; empty when it is not just a name and a port."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return ""
    return (parts.hostname or "") if parts.netloc == host and "@" not in host else ""


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read, then what comes after it: the disconnect."""
    waiting: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


async def _answer_error(error: Refused, send: Send) -> None:
    body = json.dumps(error_body(str(error), error.status, code=error.code)).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
