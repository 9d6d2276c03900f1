"""Talk with a model in the terminal: /reset, /system TEXT, /quit."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tunesmith.core import files
from tunesmith.core.config import Config, Seed
from tunesmith.core.errors import DataError, ServiceError
from tunesmith.core.examples import Message
from tunesmith.engines import EngineConfig
from tunesmith.engines.auto import Auto
from tunesmith.engines.contract import Request, Sampling

if TYPE_CHECKING:
    from tunesmith.core.artifacts import Talk
    from tunesmith.core.run import Run
    from tunesmith.engines.contract import Engine

SUBJECT = "model"
TRANSCRIPT = "conversations.jsonl"
HELP = "/reset begins a new conversation, /system TEXT sets the system message, /quit or Ctrl-D ends, Ctrl-C stops an answer"


class ChatConfig(Config):
    """Whom to talk with, and how it answers."""

    model: str
    """A package, run, checkpoint, .gguf file, folder, embedded, hf:ID, ms:ID, or the address of a server."""
    engine: EngineConfig = Auto()
    """What generates; auto takes llama_cpp for GGUF, transformers for safetensors, remote for an address."""
    system: str | None = None
    """System message; null leaves it to the model's template."""
    max_tokens: Annotated[int, Field(ge=1)] = 512
    """Most tokens of one answer."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """0 always takes the most likely token; more varies."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw only from the most likely tokens that together have this probability."""
    seed: Seed | None = None
    """Makes answers with a temperature repeatable; null varies."""


def preview(config: ChatConfig) -> str:
    """What would happen, in words."""
    return f"chat with {config.model} (engine {config.engine.kind}, temperature {config.temperature:g})"


def run(config: ChatConfig, run: Run) -> Talk:
    """Read questions from the terminal or a pipe (a line is a turn), stream answers, until /quit or the end of input.

    Raises what the engine raises; in a terminal, an error of one answer is said and the talk goes on.
    """
    from tunesmith.core.artifacts import Talk as TalkResult

    started = time.time()
    engine = config.engine.open(config.model)
    talk = _Talk(config, run, engine)
    if talk.is_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - line editing and history for input()
        run.say(f"{engine.model} by {engine.name}. {HELP}.", style="dim")
    with asyncio.Runner() as runner:
        try:
            while (line := talk.read()) not in {None, "/quit"}:
                talk.take(line or "", runner)
        finally:
            runner.run(engine.close())
    talk.reset()
    files.write_jsonl(run.folder / TRANSCRIPT, talk.finished)
    return TalkResult(run.folder / TRANSCRIPT, engine.name, engine.model, talk.turns, round(time.time() - started, 3))


@dataclass
class _Talk:
    """The conversation now, and those before /reset."""

    config: ChatConfig
    run: Run
    engine: Engine
    messages: list[Message] = field(default_factory=list)
    finished: list[dict[str, list[dict[str, object]]]] = field(default_factory=list)
    turns: int = 0
    system: str | None = None
    is_terminal: bool = False

    def __post_init__(self) -> None:
        self.system, self.is_terminal = self.config.system, sys.stdin.isatty()

    def read(self) -> str | None:
        """The next line; None at the end of input."""
        while True:
            try:
                return input("> " if self.is_terminal else "").strip()
            except EOFError:
                return None
            except KeyboardInterrupt:
                if not self.is_terminal:
                    raise
                self.run.say(f"\n{HELP}.", style="dim")

    def take(self, line: str, runner: asyncio.Runner) -> None:
        """A command, or a question to answer."""
        command, _, rest = line.partition(" ")
        if not line:
            return
        if command == "/reset":
            self.reset()
            self.run.say("new conversation", style="dim")
        elif command == "/system":
            self.reset()
            self.system = rest.strip() or None
            self.run.say(
                "new conversation, system message " + ("set" if self.system else "left to the model"), style="dim"
            )
        elif command.startswith("/") and command[1:].isalpha():
            self.run.say(f"{HELP}.", style="dim")
        else:
            self._ask(line, runner)

    def reset(self) -> None:
        """Keep the conversation for the transcript and begin a new one."""
        if self.messages:
            self.finished.append({"messages": [message.as_dict() for message in self._with_system()]})
        self.messages = []

    def _ask(self, question: str, runner: asyncio.Runner) -> None:
        self.messages.append(Message("user", question))
        said: list[str] = []
        try:
            runner.run(self._stream(said))
        except KeyboardInterrupt:
            self._write(" [stopped]")
        except (DataError, ServiceError) as error:
            self.messages.pop()
            if not self.is_terminal:
                raise
            self.run.warn(str(error))
            return
        self._write("\n")
        self.turns += 1
        self.messages.append(Message("assistant", "".join(said)))

    async def _stream(self, said: list[str]) -> None:
        config = self.config
        sampling = Sampling(config.max_tokens, config.temperature, config.top_p, config.seed)
        async with aclosing(self.engine.stream(Request(tuple(self._with_system()), sampling=sampling))) as pieces:
            async for piece in pieces:
                said.append(piece.text)
                self._write(piece.text)
                if piece.finish == "length":
                    self._write(" [cut at max_tokens]")

    def _with_system(self) -> list[Message]:
        return [*([Message("system", self.system)] if self.system else []), *self.messages]

    def _write(self, text: str) -> None:
        """Put text on screen as it comes; control characters of a model must not steer the terminal."""
        shown = "".join(letter for letter in text if letter in "\n\t" or not _is_control(letter))
        self.run.console.out(shown, end="", highlight=False)
        self.run.console.file.flush()


def _is_control(letter: str) -> bool:
    return ord(letter) < 0x20 or 0x7F <= ord(letter) < 0xA0
