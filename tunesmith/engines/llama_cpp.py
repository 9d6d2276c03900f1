"""A GGUF file in llama.cpp, run inside this process behind its own loopback port. Owns xllamacpp."""

from __future__ import annotations

import asyncio
import importlib
import secrets
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from tunesmith.core import hardware
from tunesmith.core.config import Config
from tunesmith.core.errors import DataError, MissingExtra, ModelError
from tunesmith.core.examples import Message
from tunesmith.engines.contract import Piece, Request
from tunesmith.engines.remote import RemoteEngine, Upstream
from tunesmith.models.load import Found, find

# Only what a request names may change its answer (llama.cpp's own top_k 40 and min_p 0.05 would),
# and temperature comes before top_p, as in the OpenAI API and in transformers.
SAMPLERS = ["temperature", "top_p"]
BATCH_TOKENS = 64
GUESSED_TEMPLATE = (
    "{%- for message in messages -%}\n  {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}\n"
    "{%- endfor -%}\n{%- if add_generation_prompt -%}\n  {{- '<|im_start|>assistant\n' -}}\n{%- endif -%}"
)
"""What llama.cpp takes where a file has no chat template, without a word."""


class LlamaCpp(Config):
    """Run a GGUF file with llama.cpp: the fastest engine on a CPU."""

    kind: Literal["llama_cpp"] = "llama_cpp"
    context: Annotated[int, Field(ge=64)] = 4096
    """Tokens of one conversation, prompt and answer together; never more than the model was made for."""
    slots: Annotated[int, Field(ge=1, le=256)] = 4
    """Requests answered side by side; each slot takes memory for `context` tokens."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads that compute; null uses every core this process may use."""
    reuse_prompt: bool = True
    """Keep the beginning that a request shares with the one before; off makes every answer independent of the others."""

    def open(self, model: str | Found) -> LlamaCppEngine:
        """Load the model's GGUF file.

        Raises ModelError when it has none or llama.cpp cannot read it, MissingExtra when xllamacpp is not installed.
        """
        found = find(model) if isinstance(model, str) else model
        if not found.gguf:
            raise ModelError(
                found.name, "has no GGUF file", do="Export it with format gguf or use --engine.kind transformers"
            )
        return LlamaCppEngine(self, found.gguf, found.name)


class LlamaCppEngine:
    """A running llama.cpp server of this process; also shows its tokens and its template for the proofs."""

    name = "llama_cpp"

    def __init__(self, config: LlamaCpp, gguf: Path, model: str) -> None:
        self.model, self.at_once = model, config.slots
        key = secrets.token_urlsafe(24)
        self._server: Any = _start(config, gguf, key)
        self._upstream = Upstream(self._server.listening_address, key)
        self._remote = RemoteEngine(
            self._upstream, model, config.slots, name=self.name,
            extra={"samplers": SAMPLERS, "cache_prompt": config.reuse_prompt, "return_progress": True},
        )  # fmt: skip
        props = self._upstream.ask("GET", "/props")
        self.context: int = props["default_generation_settings"]["n_ctx"]
        """Tokens a conversation may have."""
        self._has_template = props["chat_template"] != GUESSED_TEMPLATE

    def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Answer one request piece by piece; closing the generator frees the slot.

        Raises DataError for a conversation when the file has no chat template; a prompt needs none.
        """
        if request.prompt is None and not self._has_template:
            raise DataError(
                f"model: {self.model}", "its GGUF file has no chat template",
                do="Export it again from the model with its tokenizer, or send a prompt to /v1/completions",
            )  # fmt: skip
        return self._remote.stream(request)

    def token_ids(self, text: str) -> list[int]:
        """Token ids of a text as llama.cpp reads it, special tokens parsed, none added."""
        body = {"content": text, "add_special": False, "parse_special": True}
        return list(self._upstream.ask("POST", "/tokenize", body)["tokens"])

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation through the template in the GGUF file, with the beginning of the answer.

        Raises DataError when the template refuses the messages.
        """
        if not messages:
            raise DataError("messages", "must not be empty")
        body = {"messages": [message.as_dict() for message in messages]}
        return str(self._upstream.ask("POST", "/apply-template", body)["prompt"])

    def busy_slots(self) -> int:
        """Slots that compute at this moment."""
        return sum(bool(slot["is_processing"]) for slot in self._upstream.ask("GET", "/slots"))

    async def alive(self) -> bool:
        """Whether the server in this process answers."""
        return self._server is not None and await self._remote.alive()

    async def close(self) -> None:
        """Stop the server and free the model."""
        await self._remote.close()
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        self._server = None  # its destructor ends the threads and frees the memory


def _start(config: LlamaCpp, gguf: Path, key: str) -> Any:
    try:
        llama: Any = importlib.import_module("xllamacpp")  # a binary module without types
    except ModuleNotFoundError:
        raise MissingExtra("engine llama_cpp", "needs xllamacpp", do="pip install 'tunesmith[serve]'") from None
    threads = config.threads or hardware.probe().cores
    params = llama.CommonParams()
    params.model.path = str(gguf)
    params.n_ctx, params.n_parallel = config.context * config.slots, config.slots
    params.fit_params = False  # would make the context smaller without a word
    params.api_keys, params.cors_origins, params.ui = [key], "", False
    params.endpoint_slots, params.verbosity, params.warmup = True, -1, False
    params.cache_ram_mib = 0
    params.reasoning_format = llama.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    params.force_pure_content_parser = True  # text as the model wrote it
    # llama.cpp looks whether the client is still there when it has something to tell: with return_progress after every
    # batch of the prompt (waiting for the first token it may not look at all while other slots are talking).
    params.n_batch = params.n_ubatch = BATCH_TOKENS
    params.n_threads_http = config.slots + 4  # one for each answer, and health is never blocked
    for pool in (params.cpuparams, params.cpuparams_batch):
        pool.n_threads = threads
        pool.poll = 0  # threads that spin while waiting are slow as soon as anything else runs
    try:
        return llama.Server(params)
    except RuntimeError as error:
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        raise ModelError(str(gguf), f"cannot be loaded by llama.cpp: {reason}") from None
