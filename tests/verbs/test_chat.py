"""Talking in a terminal and through a pipe."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from tunesmith.core.errors import ServiceError
from tunesmith.core.run import RESULT
from tunesmith.engines.echo import Echo
from tunesmith.verbs.chat import TRANSCRIPT
from tunesmith.verbs.serve import ServeConfig, local_server

ECHO = ("--engine.kind", "echo")


def chat(tmp_path, typed: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tunesmith", "chat", *words, "--out", str(tmp_path / "run")]
    return subprocess.run(command, input=typed, capture_output=True, text=True, timeout=60, check=False)


def conversations(tmp_path) -> list[list[tuple[str, str]]]:
    lines = (tmp_path / "run" / TRANSCRIPT).read_text(encoding="utf-8").splitlines()
    return [[(turn["role"], turn["content"]) for turn in json.loads(line)["messages"]] for line in lines]


def test_every_line_of_a_pipe_is_a_turn(tmp_path):
    done = chat(tmp_path, "hello there\n\n你好 世界\n", "parrot", *ECHO)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "hello there\n你好 世界\n"
    assert conversations(tmp_path) == [
        [("user", "hello there"), ("assistant", "hello there"), ("user", "你好 世界"), ("assistant", "你好 世界")]
    ]
    result = json.loads((tmp_path / "run" / RESULT).read_text(encoding="utf-8"))
    assert (result["engine"], result["model"], result["turns"]) == ("echo", "parrot", 2)


def test_commands(tmp_path):
    typed = "one\n/reset\ntwo\n/system Be brief.\nthree\n/what\n/quit\nnever\n"
    done = chat(tmp_path, typed, "parrot", *ECHO)
    assert done.returncode == 0
    assert "never" not in done.stdout
    assert "/reset begins" in done.stdout
    assert conversations(tmp_path) == [
        [("user", "one"), ("assistant", "one")],
        [("user", "two"), ("assistant", "two")],
        [("system", "Be brief."), ("user", "three"), ("assistant", "three")],
    ]


def test_an_answer_that_is_cut_says_so(tmp_path):
    done = chat(tmp_path, "a b c d\n", "parrot", *ECHO, "--max_tokens", "2")
    assert done.stdout == "a b [cut at max_tokens]\n"
    assert conversations(tmp_path)[0][-1] == ("assistant", "a b")


def test_a_model_does_not_steer_the_terminal(tmp_path):
    done = chat(tmp_path, "red \x1b[31m :smile: [bold]x[/bold]\x07\n", "parrot", *ECHO)
    assert done.stdout == "red [31m :smile: [bold]x[/bold]\n"


def test_talking_to_a_server(tmp_path):
    with local_server(ServeConfig(model="parrot", engine=Echo())) as (address, _):
        done = chat(tmp_path, "over the wire\n", address)
    assert done.stdout == "over the wire\n"
    assert json.loads((tmp_path / "run" / RESULT).read_text(encoding="utf-8"))["engine"] == "remote"


def test_a_server_that_is_not_there(tmp_path):
    done = chat(tmp_path, "x\n", "http://127.0.0.1:9")
    assert done.returncode == ServiceError.exit_code
    assert done.stderr.count("\n") == 1
    assert "does not answer" in done.stderr


class Terminal:
    """`tunesmith chat` on a pseudo terminal."""

    def __init__(self, *words: str) -> None:
        self.end, other = pty.openpty()
        command = [sys.executable, "-m", "tunesmith", "chat", *words]
        env = {**os.environ, "TERM": "dumb"}
        self.process = subprocess.Popen(
            command, stdin=other, stdout=other, stderr=other, env=env, start_new_session=True
        )
        os.close(other)
        self.seen = ""

    def appears(self, text: str, seconds: float) -> bool:
        """Read until the text has appeared or the time is over."""
        stop = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.end], [], [], max(0.0, stop - time.monotonic()))
            if not ready:
                return False
            self.seen += os.read(self.end, 4096).decode(errors="replace")
        self.seen = self.seen.partition(text)[2]
        return True

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Fail when the text does not appear."""
        assert self.appears(text, seconds), self.seen

    def press_ctrl_c(self) -> None:
        """As the keyboard does it."""
        self.process.send_signal(signal.SIGINT)

    def type(self, text: str) -> None:
        """Type a line."""
        os.write(self.end, text.encode())


@pytest.fixture
def terminal(tmp_path):
    made = Terminal("parrot", *ECHO, "--engine.delay_seconds", "0.2", "--out", str(tmp_path / "run"))
    yield made
    made.process.kill()
    made.process.wait()
    os.close(made.end)


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal, tmp_path):
    terminal.wait_for("> ")
    terminal.type("one two three four five six seven eight nine ten\n")
    terminal.wait_for("ten")  # the terminal's own echo of what was typed
    terminal.wait_for("one two")
    terminal.press_ctrl_c()
    terminal.wait_for("[stopped]")
    terminal.wait_for("> ")
    # Python shows the prompt a moment before it listens: a signal in between is seen with the next key only.
    for _ in range(20):
        terminal.press_ctrl_c()
        if terminal.appears("/quit or Ctrl-D", seconds=1):
            break
    else:
        pytest.fail(f"Ctrl-C at the prompt explains nothing: {terminal.seen}")
    terminal.wait_for("> ")
    terminal.type("again\n")
    terminal.wait_for("again")
    terminal.wait_for("again")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.process.wait(10) == 0
    first = conversations(tmp_path)[0]
    assert first[1][1].startswith("one two")
    assert "ten" not in first[1][1]
    assert first[2:] == [("user", "again"), ("assistant", "again")]
