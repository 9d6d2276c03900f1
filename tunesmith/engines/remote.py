"""Any server that speaks the OpenAI API, asked over HTTP and always streaming. Knows no model files."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

from tunesmith.core.config import Config
from tunesmith.core.errors import DataError, ServiceError, UsageError
from tunesmith.engines.contract import Finish, Piece, Request
from tunesmith.models.load import Found

if TYPE_CHECKING:
    import httpx2

LONGEST_EVENT_BYTES = 1 << 20


class Remote(Config):
    """Ask a server that speaks the OpenAI API; `model` is then the name it has there."""

    kind: Literal["remote"] = "remote"
    address: str
    """Address of the server, with or without /v1: http://127.0.0.1:8000."""
    key_variable: str | None = None
    """Name of the environment variable that holds the API key; null sends none."""
    at_once: Annotated[int, Field(ge=1, le=1024)] = 16
    """Requests in flight side by side."""
    connect_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Longest wait for a connection."""
    silence_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Longest wait for the next piece of an answer."""

    def open(self, model: str | Found = "") -> RemoteEngine:
        """Open it for a model by its name there; an empty name means the first the server lists.

        Raises UsageError when the key is not set or the address is none, ServiceError when nobody answers.
        """
        key = None
        if self.key_variable:
            key = os.environ.get(self.key_variable)
            if not key:
                raise UsageError("engine.key_variable", "the environment variable is not set", got=self.key_variable)
        upstream = Upstream(self.address, key, self.connect_seconds, self.silence_seconds)
        name = model if isinstance(model, str) else model.name
        return RemoteEngine(upstream, name or upstream.first_model(), self.at_once)


class Upstream:
    """Where requests go: address, key and timeouts; makes clients and turns their failures into ours."""

    def __init__(self, address: str, key: str | None, connect_seconds: float = 10.0, silence_seconds: float = 600.0):
        parts = urlsplit(address)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError("address", "must be an http address", got=address, do="For instance http://127.0.0.1:8000")
        self.address = address.rstrip("/").removesuffix("/v1")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeouts = (connect_seconds, silence_seconds)
        self._is_local = parts.hostname in {"127.0.0.1", "localhost", "::1"}

    def options(self) -> dict[str, Any]:
        """Arguments of an httpx2 client. No proxy stands between this machine and itself."""
        import httpx2

        connect, silence = self._timeouts
        timeout = httpx2.Timeout(silence, connect=connect, write=connect, pool=silence)
        # A connection serves one request: none is left over that the server may have closed meanwhile.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        return {
            "base_url": self.address, "headers": self._headers, "timeout": timeout, "limits": limits,
            "trust_env": not self._is_local,
            "verify": self.address.startswith("https"),  # reading the certificates takes 0.1 s, for each client anew
        }  # fmt: skip

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One JSON answer, without an event loop. Raises DataError or ServiceError."""
        import httpx2

        try:
            with httpx2.Client(**self.options()) as client:
                response = client.request(method, path, json=body)
            if response.status_code >= 400:
                raise self._refusal(response.status_code, response.content)
            return response.json()
        except httpx2.HTTPError as error:
            raise self.unreachable(error) from None
        except ValueError:
            raise ServiceError(self.address, f"did not answer {path} in JSON") from None

    def first_model(self) -> str:
        """The first model the server lists. Raises ServiceError when it lists none."""
        listed = self.ask("GET", "/v1/models")
        try:
            return str(listed["data"][0]["id"])
        except (KeyError, IndexError, TypeError):
            raise ServiceError(self.address, "lists no model at /v1/models") from None

    @asynccontextmanager
    async def post(self, client: httpx2.AsyncClient, path: str, body: Any) -> AsyncIterator[httpx2.Response]:
        """An answer whose body is still to be read; leaving closes the connection at once."""
        import httpx2

        try:
            async with client.stream("POST", path, json=body) as response:
                if response.status_code >= 400:
                    raise self._refusal(response.status_code, await response.aread())
                yield response
        except httpx2.HTTPError as error:
            raise self.unreachable(error) from None

    def unreachable(self, error: Exception) -> ServiceError:
        """The one line for a server that does not answer."""
        reason = str(error).strip() or type(error).__name__
        return ServiceError(self.address, f"does not answer: {reason}", do="Is the server running there?")

    def _refusal(self, status: int, content: bytes) -> DataError | ServiceError:
        message = f"HTTP {status}"
        try:
            said = json.loads(content)["error"]
            message = str(said["message"] if isinstance(said, dict) else said)
        except (ValueError, KeyError, TypeError):
            pass
        if status in {401, 403}:
            return ServiceError(self.address, f"refuses the key: {message}", do="Set engine.key_variable")
        if status == 429 or status >= 500:
            return ServiceError(self.address, f"cannot answer now: {message}")
        return DataError(self.address, f"refuses the request: {message}")


class RemoteEngine:
    """One model of an OpenAI-compatible server. `extra` is added to every request body."""

    def __init__(
        self, upstream: Upstream, model: str, at_once: int, *, name: str = "remote", extra: dict[str, Any] | None = None
    ) -> None:
        self.name, self.model, self.at_once = name, model, at_once
        self._upstream, self._extra = upstream, extra or {}
        self._client: httpx2.AsyncClient | None = None

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Answer one request piece by piece; closing the generator closes the connection to the server."""
        path, body = self._body(request)
        finish: Finish | None = None
        usage: dict[str, int] = {}
        async with self._upstream.post(self._open_client(), path, body) as response:
            async for event in _events(response):
                usage = event.get("usage") or usage
                for choice in event.get("choices") or ():
                    text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                    if text:
                        yield Piece(text)
                    if choice.get("finish_reason"):
                        finish = "length" if choice["finish_reason"] == "length" else "stop"
        if finish is None:
            raise ServiceError(self._upstream.address, "ended the answer before it was whole")
        yield Piece("", finish, usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0)

    async def alive(self) -> bool:
        """Whether the server answers at all."""
        import httpx2

        try:
            response = await self._open_client().get("/v1/models", timeout=5.0)
        except httpx2.HTTPError:
            return False
        return response.status_code < 500

    async def close(self) -> None:
        """Close what connections are left."""
        client, self._client = self._client, None
        if client:
            await client.aclose()

    def _open_client(self) -> httpx2.AsyncClient:
        import httpx2

        if self._client is None:
            self._client = httpx2.AsyncClient(**self._upstream.options())
        return self._client

    def _body(self, request: Request) -> tuple[str, dict[str, Any]]:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self.model, "stream": True, "stream_options": {"include_usage": True},
            "max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p,
        }  # fmt: skip
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        body |= self._extra
        if request.prompt is not None:
            return "/v1/completions", {**body, "prompt": request.prompt}
        return "/v1/chat/completions", {**body, "messages": [message.as_dict() for message in request.messages]}


async def _events(response: httpx2.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON documents of a text/event-stream, to its [DONE].

    Lines are split at newline bytes only: str.splitlines (as aiter_lines uses it) also splits at U+2028 inside JSON.
    """
    waiting = b""
    async for chunk in response.aiter_bytes():
        *lines, waiting = (waiting + chunk).split(b"\n")
        if len(waiting) > LONGEST_EVENT_BYTES:
            raise ServiceError(str(response.url), "sent an event longer than 1 MiB")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            try:
                event = json.loads(data)
            except ValueError:
                raise ServiceError(str(response.url), "sent an event that is not JSON") from None
            if "error" in event:
                error = event["error"]
                message = error.get("message") if isinstance(error, dict) else error
                raise ServiceError(str(response.url), f"broke off: {message}")
            yield event
