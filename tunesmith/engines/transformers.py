"""Safetensors in transformers: a thread that answers many requests at once, step by step."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field

from tunesmith.core import hardware
from tunesmith.core.config import Config
from tunesmith.core.errors import DataError, ServiceError, TunesmithError
from tunesmith.engines.contract import Finish, Piece, Request
from tunesmith.engines.pieces import Detokenizer, StopCutter
from tunesmith.models.load import Found, find, load_model, load_tokenizer
from tunesmith.models.virtual import virtual_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tunesmith.engines.batch import Row


class Transformers(Config):
    """Run safetensors with transformers; an adapter is merged into them where it changes weights, else stands beside."""

    kind: Literal["transformers"] = "transformers"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Numbers to compute in; auto takes bf16 where the processor has it, else fp32."""
    rows: Annotated[int, Field(ge=1, le=256)] = 32
    """Requests answered side by side in one batch."""
    context: Annotated[int, Field(ge=16)] | None = None
    """Tokens of one conversation, prompt, answer and virtual tokens together; null takes what the model was made for."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """Threads that compute; null leaves it to torch."""

    def open(self, model: str | Found) -> TransformersEngine:
        """Load a model with its adapter. Raises ModelError when it cannot be used."""
        found = find(model) if isinstance(model, str) else model
        machine = hardware.probe()
        precision = self.precision
        if precision == "auto":
            precision = "bf16" if machine.native_bf16 else "fp32"
        tokenizer = load_tokenizer(found)
        weights = load_model(found, precision, device=machine.device, merged=True)
        return TransformersEngine(self, found.name, weights, tokenizer)


@dataclass
class _Ticket:
    """A request on its way through the worker: who waits for it, and what it has become."""

    request: Request
    loop: asyncio.AbstractEventLoop
    out: asyncio.Queue[Piece | TunesmithError] = field(default_factory=asyncio.Queue)
    is_over: bool = False
    row: Row | None = None
    words: Detokenizer | None = None
    cutter: StopCutter = field(default_factory=lambda: StopCutter(()))
    limit: int = 0
    """Tokens the answer may have."""

    def end(self) -> None:
        """Take it out of the batch before the next step; may be called from any thread."""
        self.is_over = True
        if self.row:
            self.row.is_over = True

    def tell(self, item: Piece | TunesmithError) -> None:
        """Hand something to the waiting coroutine; where its loop is gone, nobody waits any more."""
        try:
            self.loop.call_soon_threadsafe(self.out.put_nowait, item)
        except RuntimeError:
            self.end()


class TransformersEngine:
    """A model and the one thread that uses it."""

    name = "transformers"

    def __init__(
        self, config: Transformers, model: str, weights: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        longest = getattr(weights.config.get_text_config(), "max_position_embeddings", None) or 4096
        self.model, self.at_once, self.virtual = model, config.rows, virtual_tokens(weights)
        self.context: int = min(config.context or longest, longest) - self.virtual
        """Tokens left for a conversation; virtual tokens take their places."""
        self._inbox: queue.SimpleQueue[_Ticket | None] = queue.SimpleQueue()
        self._worker = _Worker(self._inbox, weights, tokenizer, self)
        self._thread = threading.Thread(
            target=self._worker.run, args=(config.threads,), name=f"engine {model}", daemon=True
        )
        self._thread.start()

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Answer one request piece by piece; closing the generator takes its row out of the batch."""
        ticket = _Ticket(request, asyncio.get_running_loop())
        self._inbox.put(ticket)
        if self._worker.is_closed:  # asked after putting it in: a worker that closes later tells whoever it finds there
            raise ServiceError("engine transformers", "is closed")
        try:
            while True:
                item = await ticket.out.get()
                if isinstance(item, TunesmithError):
                    raise item
                yield item
                if item.finish:
                    return
        finally:
            ticket.end()

    @property
    def busy_rows(self) -> int:
        """Rows the batch holds at this moment."""
        return len(self._worker.tickets)

    async def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive() and not self._worker.is_closed

    async def close(self) -> None:
        """End the thread and free the model; requests in flight get a ServiceError."""
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)


class _Worker:
    """What the thread does: tickets in, steps of the batch, pieces out."""

    def __init__(
        self,
        inbox: queue.SimpleQueue[_Ticket | None],
        weights: PreTrainedModel,
        tokenizer: Any,
        engine: TransformersEngine,
    ) -> None:
        from tunesmith.engines.batch import Batch

        self._inbox, self._tokenizer = inbox, tokenizer
        self._context, self._at_once, self._virtual = engine.context, engine.at_once, engine.virtual
        self._batch: Batch = Batch(weights)
        self._end_ids = end_token_ids(weights, tokenizer)
        self._waiting: deque[_Ticket] = deque()
        self.tickets: dict[int, _Ticket] = {}
        self.is_closed = False

    def run(self, threads: int | None) -> None:
        """Work until None comes in; whatever ends the thread, nobody is left waiting."""
        import torch

        if threads:
            torch.set_num_threads(threads)
        try:
            while self._take_in():
                self._step()
        finally:
            self.is_closed = True
            self._fail(ServiceError("engine transformers", "was closed"))
            self._batch.clear()

    def _take_in(self) -> bool:
        """Fetch what has come in, waiting where there is nothing else to do. False when it is time to end."""
        idle = not self._batch.rows and not self._waiting
        while idle or not self._inbox.empty():
            ticket = self._inbox.get()
            if ticket is None:
                return False
            self._waiting.append(ticket)
            idle = False
        while self._waiting and len(self.tickets) < self._at_once:
            self._admit(self._waiting.popleft())
        return True

    def _admit(self, ticket: _Ticket) -> None:
        from tunesmith.engines.batch import Row

        if ticket.is_over:
            return
        sampling = ticket.request.sampling
        try:
            prompt = self._encode(ticket.request)
        except TunesmithError as error:
            ticket.tell(error)
            return
        ticket.limit = min(sampling.max_tokens, self._context - len(prompt))
        ticket.words, ticket.cutter = Detokenizer(self._tokenizer), StopCutter(sampling.stop)
        ticket.row = Row(sampling, prompt)
        if ticket.is_over:
            ticket.row.is_over = True
        self.tickets[id(ticket.row)] = ticket
        self._batch.add(ticket.row)

    def _encode(self, request: Request) -> list[int]:
        from jinja2 import TemplateError

        if request.prompt is not None:
            ids = self._tokenizer(request.prompt)["input_ids"]
        else:
            messages = [message.as_dict() for message in request.messages]
            try:
                text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            except TemplateError as error:
                raise DataError("messages", f"the model's chat template refuses them: {error}") from None
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise DataError("prompt", "must not be empty")
        if len(ids) >= self._context:
            beside = f" beside its {self._virtual} virtual tokens" if self._virtual else ""
            said = f"has {len(ids)} tokens, the model takes less than {self._context}{beside}"
            raise DataError("prompt", said, do="Shorten it")
        return cast(list[int], ids)

    def _step(self) -> None:
        try:
            rows = self._batch.step()
        except (RuntimeError, MemoryError) as error:  # torch says RuntimeError when memory is short
            reason = (str(error) or type(error).__name__).splitlines()[0]
            self._batch.clear()
            self._fail(ServiceError("engine transformers", f"failed while answering: {reason}"))
            return
        for row in rows:
            self._tell_token(self.tickets[id(row)], row)
        self.tickets = {key: ticket for key, ticket in self.tickets.items() if not ticket.is_over}

    def _tell_token(self, ticket: _Ticket, row: Row) -> None:
        """Turn the row's last token into text, and end the row where it is the last one."""
        assert ticket.words is not None
        token, cutter = row.ids[-1], ticket.cutter
        finish: Finish | None = None
        if token in self._end_ids:
            finish, text = "stop", cutter.take(ticket.words.rest())
        else:
            text = cutter.take(ticket.words.take(token))
            if len(row.ids) >= ticket.limit and not cutter.stopped:
                finish, text = "length", text + cutter.take(ticket.words.rest())
        if cutter.stopped:
            finish = "stop"
        if finish is None:
            if text:
                ticket.tell(Piece(text))
            return
        ticket.end()
        ticket.tell(Piece(text + cutter.rest(), finish, len(row.prompt), len(row.ids)))

    def _fail(self, error: ServiceError) -> None:
        """Tell everybody who waits."""
        while not self._inbox.empty():
            late = self._inbox.get()
            if late:
                self._waiting.append(late)
        for ticket in [*self.tickets.values(), *self._waiting]:
            ticket.end()
            ticket.tell(error)
        self.tickets = {}
        self._waiting.clear()


def end_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: those of the generation config and the tokenizer's own end token (the turn's end)."""
    named = model.generation_config.eos_token_id if model.generation_config else None
    ids = named if isinstance(named, list) else [named]
    return frozenset(token for token in [*ids, tokenizer.eos_token_id] if token is not None)
