"""The routes: the OpenAI API over one engine, health, and the pages. Knows no sockets and no signals."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tunesmith import __version__
from tunesmith.core.errors import DataError, TunesmithError
from tunesmith.serving.admission import Admission, Busy, Limits
from tunesmith.serving.answers import Answering, Bounds
from tunesmith.serving.protocol import ChatRequest, CompletionRequest, Refused, Writer, error_body
from tunesmith.serving.security import Guard, KeyCheck

if TYPE_CHECKING:
    from tunesmith.engines.contract import Engine

PAGES = Path(__file__).parent / "pages"
MEDIA = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}


@dataclass(eq=False)
class Serving:
    """One engine at the disposal of clients, with what it takes on."""

    engine: Engine
    model: str
    """The name clients use."""
    limits: Limits = field(default_factory=Limits)
    temperature: float = 0.0
    """For requests that name none."""
    created: int = field(default_factory=lambda: int(time.time()))
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when running answers must end now."""

    def __post_init__(self) -> None:
        self.admission = Admission(self.limits, self.limits.running or self.engine.at_once)

    def answering(self, body: ChatRequest | CompletionRequest) -> Answering:
        """Check a request and prepare its answer. Raises Refused."""
        if body.model != self.model:
            raise Refused(
                f"no model {body.model!r} here; known: {self.model}", param="model", code="model_not_found", status=404
            )
        samplings = [
            body.sampling(index, most_tokens=self.limits.answer_tokens, temperature=self.temperature)
            for index in range(body.n)
        ]
        writer = Writer(self.model, is_chat=isinstance(body, ChatRequest), include_usage=body.include_usage)
        place = self.admission.place(body.n, body.characters())
        bounds = Bounds(place, self.limits.answer_seconds, self.closing)
        return Answering(self.engine, [body.request(sampling) for sampling in samplings], writer, bounds)

    async def status(self) -> tuple[int, dict[str, Any]]:
        """HTTP status and words for readiness."""
        admission = self.admission
        word = "stopping" if admission.draining else "ready" if await self.engine.alive() else "engine dead"
        counts = {"running": admission.running, "places": admission.places, "waiting": admission.waiting}
        return (200 if word == "ready" else 503), {"status": word, **counts}


def make_app(serving: Serving, *, key: str | None = None, local_only: bool = True) -> Guard:
    """The application. Every route but health and the (empty) pages needs `key` where there is one.

    `local_only`: answer requests to a loopback Host only.
    """
    app = FastAPI(title="Tunesmith", version=__version__, openapi_url=None, docs_url=None, redoc_url=None)
    guarded = APIRouter(dependencies=[Depends(KeyCheck(key))])
    _add_api(guarded, serving)
    guarded.add_api_route("/openapi.json", app.openapi, include_in_schema=False)
    app.include_router(guarded)
    app.include_router(_health(serving))
    app.include_router(_pages())
    app.add_exception_handler(TunesmithError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)
    return Guard(app, serving.limits, local_only=local_only)


def _add_api(router: APIRouter, serving: Serving) -> None:
    card = {"id": serving.model, "object": "model", "created": serving.created, "owned_by": "tunesmith"}

    @router.post("/v1/chat/completions", response_class=Response, summary="Continue a conversation")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        answering = serving.answering(body)
        return answering.streamed() if body.stream else await answering.whole(request.receive)

    @router.post("/v1/completions", response_class=Response, summary="Continue a text")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        answering = serving.answering(body)
        return answering.streamed() if body.stream else await answering.whole(request.receive)

    @router.get("/v1/models", summary="The model that is served")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @router.get("/v1/models/{name:path}", summary="One model by its name")
    async def model(name: str) -> dict[str, Any]:
        if name != serving.model:
            raise Refused(
                f"no model {name!r} here; known: {serving.model}", param="model", code="model_not_found", status=404
            )
        return card


def _health(serving: Serving) -> APIRouter:
    router = APIRouter()

    @router.get("/health/live", summary="The process runs")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @router.get("/health/ready", summary="Requests are answered (200), or not now (503)")
    async def ready() -> JSONResponse:
        status, words = await serving.status()
        return JSONResponse(words, status)

    return router


def _pages() -> APIRouter:
    """The static pages, read once; they hold no data, the browser asks the API for it."""
    router = APIRouter(include_in_schema=False)
    files = {path.name: (path.read_bytes(), MEDIA[path.suffix]) for path in PAGES.iterdir() if path.suffix in MEDIA}

    def page(name: str) -> Response:
        content, media = files[name]
        return Response(content, media_type=media, headers={"cache-control": "no-cache"})

    @router.get("/")
    async def chat() -> Response:
        return page("index.html")

    @router.get("/docs")
    async def docs() -> Response:
        return page("docs.html")

    @router.get("/pages/{name}")
    async def part(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return page(name)

    return router


async def _on_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, TunesmithError)
    status, param, code = error.http_status, None, None
    headers: dict[str, str] = {}
    if isinstance(error, Refused):
        status, param, code = error.status, error.param, error.code
    elif isinstance(error, DataError):
        status = 400
    elif isinstance(error, Busy):
        code, headers = "queue_full", {"Retry-After": str(error.retry_seconds)}
    elif status == 503:
        code, headers = "unavailable", {"Retry-After": "5"}
    if status == 401:
        headers = {"WWW-Authenticate": "Bearer"}
    return JSONResponse(error_body(str(error), status, param=param, code=code), status, headers)


async def _on_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = max(error.errors(), key=lambda said: len(said["loc"]))  # inside a union, the deepest says the most
    tags = ("str", "bool", "int", "float")  # and names of types, which pydantic puts between
    path = [str(part) for part in first["loc"][1:] if part not in tags and not set("[-") & set(str(part))]
    param = ".".join(path) or None
    if first["type"] == "extra_forbidden":
        message, code = f"{param}: is not supported by this server; leave it out", "unsupported_parameter"
    elif first["type"] == "json_invalid":
        message, param, code = "the body is not valid JSON", None, "invalid_json"
    else:
        message, code = f"{param or 'body'}: {first['msg'].removeprefix('Value error, ')}", "invalid_value"
    return JSONResponse(error_body(message, 400, param=param, code=code), 400)


async def _on_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(error_body(str(error.detail), error.status_code), error.status_code, error.headers)


async def _on_bug(request: Request, _: Exception) -> Response:
    request_id = request.scope.get("state", {}).get("request_id", "")
    body = error_body(f"something in the server itself; its log has request {request_id}", 500, code="internal_error")
    return JSONResponse(body, 500)
