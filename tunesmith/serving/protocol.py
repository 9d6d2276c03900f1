"""The OpenAI API as far as it is spoken here: requests, answers, errors. Unknown wishes are refused, never ignored."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tunesmith.core.errors import UsageError
from tunesmith.core.examples import Message, Role
from tunesmith.engines.contract import Piece, Reply, Request, Sampling

# Fields that change nothing about the answer: taken and not used.
HARMLESS = {
    "metadata", "parallel_tool_calls", "prediction", "prompt_cache_key", "prompt_cache_retention", "safety_identifier",
    "service_tier", "store", "user",
}  # fmt: skip
# Fields that are not supported, with the values (beside null) by which they ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,), "echo": (False,), "frequency_penalty": (0,), "functions": ([],), "function_call": ("none",),
    "logit_bias": ({},), "logprobs": (False,), "modalities": (["text"],), "presence_penalty": (0,),
    "response_format": ({"type": "text"},), "tools": ([],), "tool_choice": ("none", "auto"), "top_logprobs": (0,),
}  # fmt: skip
# What clients send back with an assistant message they were given.
NEUTRAL_IN_MESSAGE: dict[str, tuple[Any, ...]] = {"tool_calls": ([],), "annotations": ([],)}


class Refused(UsageError):
    """A request that is understood and not served; `param` and `code` are those of the OpenAI error body."""

    def __init__(self, what: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(param or "request", what)
        self.param, self.code, self.status = param, code, status


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def _without_neutral(body: Any, neutral: dict[str, tuple[Any, ...]], *, harmless: set[str] | None = None) -> Any:
    """Leave out the fields that ask for nothing; what is left and unknown is refused by the model."""
    if not isinstance(body, dict):
        return body
    dropped = harmless or set()
    return {
        key: value for key, value in body.items()
        if value is not None and key not in dropped and not any(value == said for said in neutral.get(key, ()))
    }  # fmt: skip


class TextPart(_Body):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: str


class ChatMessage(_Body):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @model_validator(mode="before")
    @classmethod
    def _neutral(cls, body: Any) -> Any:
        return _without_neutral(body, NEUTRAL_IN_MESSAGE)

    def text(self) -> str:
        """All text of the turn."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    def as_message(self) -> Message:
        """The turn in our words; `developer` is OpenAI's newer name of `system`."""
        role: Role = "system" if self.role == "developer" else self.role
        return Message(role, self.text())


class StreamOptions(_Body):
    """How a stream looks."""

    include_usage: bool = False
    """Send token counts in a chunk of their own before the end."""
    include_obfuscation: bool = False
    """Accepted; nothing is added to the chunks."""


class _Wish(_Body):
    """What both kinds of completion take."""

    model: Annotated[str, Field(max_length=300)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=8)] = 1
    stop: (
        Annotated[str, Field(max_length=200)]
        | Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=4)]
    ) = []
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _neutral(cls, body: Any) -> Any:
        return _without_neutral(body, NEUTRAL, harmless=HARMLESS)

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def wished_tokens(self) -> int | None:
        """Most tokens of an answer, where the request says it."""
        return self.max_tokens

    def sampling(self, index: int, *, most_tokens: int, temperature: float) -> Sampling:
        """Sampling of the answer number `index`; `temperature` is for a request that names none."""
        wished = self.wished_tokens()
        if wished and wished > most_tokens:
            raise Refused(
                f"at most {most_tokens} tokens an answer here", param="max_tokens", code="max_tokens_too_large"
            )
        return Sampling(
            max_tokens=wished or most_tokens,
            temperature=temperature if self.temperature is None else self.temperature,
            top_p=self.top_p,
            seed=None if self.seed is None else (self.seed + index) % 2**32,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
        )


class ChatRequest(_Wish):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=2000)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    def wished_tokens(self) -> int | None:
        """Most tokens of an answer; the newer name goes first."""
        return self.max_completion_tokens or self.max_tokens

    def characters(self) -> int:
        """Size of the question."""
        return sum(len(message.text()) for message in self.messages)

    def request(self, sampling: Sampling) -> Request:
        """The request in the engine's words."""
        return Request(tuple(message.as_message() for message in self.messages), sampling=sampling)


class CompletionRequest(_Wish):
    """Body of POST /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]

    def characters(self) -> int:
        """Size of the prompt."""
        return len(self._text())

    def request(self, sampling: Sampling) -> Request:
        """The request in the engine's words."""
        return Request(prompt=self._text(), sampling=sampling)

    def _text(self) -> str:
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


def usage_of(replies: list[Reply] | list[Piece]) -> dict[str, int]:
    """Token counts of n answers to one prompt."""
    prompt = max((reply.prompt_tokens for reply in replies), default=0)
    completion = sum(reply.completion_tokens for reply in replies)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class Writer:
    """Writes the answers to one request, whole or in chunks, for chat or plain completion."""

    def __init__(self, model: str, *, is_chat: bool, include_usage: bool) -> None:
        self._is_chat, self._include_usage = is_chat, include_usage
        self._kind = "chat.completion" if is_chat else "text_completion"
        identity = f"{'chatcmpl' if is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._head = {"id": identity, "created": int(time.time()), "model": model}

    def whole(self, replies: list[Reply]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choices = [self._choice(index, reply) for index, reply in enumerate(replies)]
        return {**self._head, "object": self._kind, "choices": choices, "usage": usage_of(replies)}

    def opening(self, index: int) -> dict[str, Any] | None:
        """The first chunk of a choice: who speaks; plain completions have none."""
        return self._chunk([self._delta(index, {"role": "assistant", "content": ""}, None)]) if self._is_chat else None

    def chunks(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """A piece of a choice: its text, and its end in a chunk of its own."""
        made = []
        if not self._is_chat:
            if piece.text or piece.finish:
                made.append(self._chunk([self._plain(index, piece.text, piece.finish)]))
            return made
        if piece.text:
            made.append(self._chunk([self._delta(index, {"content": piece.text}, None)]))
        if piece.finish:
            made.append(self._chunk([self._delta(index, {}, piece.finish)]))
        return made

    def closing(self, ends: list[Piece]) -> dict[str, Any] | None:
        """The chunk with token counts, where it was asked for."""
        return {**self._chunk([]), "usage": usage_of(ends)} if self._include_usage else None

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = {**self._head, "object": "chat.completion.chunk" if self._is_chat else self._kind, "choices": choices}
        return {**chunk, "usage": None} if self._include_usage else chunk

    def _choice(self, index: int, reply: Reply) -> dict[str, Any]:
        if not self._is_chat:
            return self._plain(index, reply.text, reply.finish)
        message = {"role": "assistant", "content": reply.text, "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": reply.finish}

    def _delta(self, index: int, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}

    def _plain(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


def error_body(message: str, status: int, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an error as the OpenAI API has it."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
