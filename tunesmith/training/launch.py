"""The door's side of many processes: torchrun is started, signals go on to the first process, what ends one ends all.

The processes read `processes/orders.json` in the run folder, write what they say on standard error into `processes/log.txt`,
and leave the one line of an error in `processes/error-RANK.json`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any

from tunesmith.core import errors, files
from tunesmith.core.artifacts import HostCommands, Training
from tunesmith.core.errors import Interrupted, ProofError, ServiceError, TunesmithError, UsageError
from tunesmith.core.run import RESULT, Run
from tunesmith.training.distributed import DevicesConfig, SilentRun, Team, joined
from tunesmith.training.stop import NOTICE, SIGNALS

ORDERS, LOG, ERROR = "orders.json", "log.txt", "error-{rank}.json"
PORT = 29500
"""torchrun's own, where several hosts must agree on one."""
LOST = "lost the others"
"""The error of a process whose partners went away: never the cause."""


def orders_folder(run_folder: Path) -> Path:
    """Where the processes of a run find what they are to do, and leave what went wrong."""
    return run_folder / "processes"


def command(devices: DevicesConfig, run_folder: Path, host: int = 0, *, port: int) -> list[str]:
    """The words that start the processes of one host."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", str(max(1, len(devices.hosts))),
        "--node-rank", str(host), "--nproc-per-node", str(devices.processes),
        "--master-addr", devices.hosts[0] if devices.hosts else "127.0.0.1", "--master-port", str(port),
        "-m", "tunesmith.worker", str(run_folder.resolve()),
    ]  # fmt: skip


def check_devices(devices: DevicesConfig, device: str) -> None:
    """Raise UsageError or MissingExtra where the processes cannot be started here; `device` is cuda or cpu."""
    import importlib.util

    if devices.kind == "zero" and importlib.util.find_spec("deepspeed") is None:
        do = "DS_BUILD_OPS=0 pip install 'tunesmith[distributed]'"
        raise errors.MissingExtra("devices.kind", "zero needs DeepSpeed", do=do)
    if device == "cuda" and not devices.hosts:
        import torch

        found = torch.cuda.device_count()
        if devices.processes > found:
            many = f"{found} GPU{'s' if found != 1 else ''}"
            raise UsageError("devices.processes", f"one a GPU, and this machine has {many}", got=devices.processes)
    if not devices.hosts:
        _free_port(devices)


def _free_port(devices: DevicesConfig) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", devices.port or 0))
        except OSError as error:
            raise ServiceError(
                "devices.port", f"cannot be used: {error.strerror}", got=devices.port,
                do="Choose another, or leave it out for a free one",
            ) from None  # fmt: skip
        return probe.getsockname()[1]


def launch(devices: DevicesConfig, run: Run, orders: dict[str, Any]) -> Training | HostCommands:
    """Start the processes of a prepared run and wait for what they make; for several hosts say what to type on each.

    Raises what ended the processes: Paused or another error of the tree as the process has said it, Interrupted after a
    signal before the first step, ServiceError for a process that went away without a word.
    """
    folder = orders_folder(run.folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    orders |= {"replay_of": run.replay_of}
    files.write_json(folder / ORDERS, orders)
    if devices.hosts:
        port = devices.port or PORT
        here = shlex.quote(str(Path.cwd()))
        typed = [shlex.join(command(devices, run.folder, number, port=port)) for number in range(len(devices.hosts))]
        commands = [f"cd {here} && {words}" for words in typed]
        for host, words in zip(devices.hosts, commands, strict=True):
            run.say(f"on {host}:\n  {words}")
        return HostCommands(run.folder, commands)
    try:
        _run_here(devices, run)
    except ProofError as error:  # what was made stands beside it
        run.unproven = error
    made = files.read_json(run.folder / RESULT)
    paths = {name: Path(made[name]) for name in ("checkpoint", "dataset")}
    return Training(**{**made, **paths})


def _run_here(devices: DevicesConfig, run: Run) -> None:
    """What the first process says goes to the screen, what all say on standard error into the log."""
    folder = orders_folder(run.folder)
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // devices.processes)), **os.environ}
    words = [*command(devices, run.folder, port=_free_port(devices)), "--launched", *(["--quiet"] if run.quiet else [])]
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=sys.stderr if run.screen_is_stderr else None, stderr=log,
            env=environment, start_new_session=True,
        )  # fmt: skip
        with _passing_signals_on(process, quiet=run.quiet) as heard:
            code = process.wait()
    _raise_what_happened(folder, devices.total, code, heard)


@contextmanager
def _passing_signals_on(process: subprocess.Popen[bytes], *, quiet: bool) -> Iterator[list[str]]:
    """Tell the first process of each signal; the third ends torchrun, and with it the processes, at once.

    The pipe closes when this process ends in whatever way, which the first process takes for SIGTERM.
    """
    assert process.stdin
    line: IO[bytes] = process.stdin
    heard: list[str] = []

    def hear(number: int, _: FrameType | None) -> None:
        heard.append(signal.Signals(number).name)
        if len(heard) == 1 and not quiet:
            with suppress(OSError):
                os.write(2, NOTICE.encode())
        if len(heard) > 2:
            process.kill()
        with suppress(OSError):
            line.write(f"{heard[-1]}\n".encode())
            line.flush()

    in_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, hear) for number in SIGNALS} if in_main else {}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        with suppress(OSError):
            line.close()


def _raise_what_happened(folder: Path, processes: int, code: int, heard: list[str]) -> None:
    said = {
        rank: files.read_json(path) for rank in range(processes) if (path := folder / ERROR.format(rank=rank)).is_file()
    }
    causes = [error for error in said.values() if error["kind"] != LOST]
    if causes:
        first = min(causes, key=lambda error: error["time"])
        raise getattr(errors, first["kind"])("", first["line"])
    if heard and code:
        raise Interrupted("train", f"ended by {heard[0]} before the first step")
    if code:
        gone = [rank for rank in range(processes) if rank not in said] or list(said)
        raise ServiceError("train", f"process {_ended(folder / LOG, gone, processes)}", do=f"See {folder / LOG}")


def _ended(log: Path, gone: list[int], processes: int) -> str:
    """Which process ended first, as far as torchrun's log knows, and how; it ends the others by SIGTERM."""
    text = log.read_text(encoding="utf-8", errors="replace")
    first = re.search(r"Root Cause.*?rank\s*: (\d+)", text, re.DOTALL)
    rank = int(first[1]) if first and int(first[1]) in gone else gone[0]
    found = re.search(rf"rank\s*: {rank} \(local_rank: \d+\)\s+exitcode\s*: (-?\d+)", text)
    if not found:
        return f"{rank} of {processes} ended without a word"
    number = int(found[1])
    how = f"by {signal.Signals(-number).name}" if number < 0 else f"with exit code {number}"
    return f"{rank} of {processes} ended {how}"


@contextmanager
def one_of_many(run_folder: Path, *, quiet: bool, launched: bool) -> Iterator[tuple[Run, dict[str, Any], Team]]:
    """In a process that torchrun has started: its run, its orders, its team.

    The first process writes result.json and, where no door waits for it, the closing event; what ends any of them is left
    as one line where the door finds it.
    """
    rank = int(os.environ["RANK"])
    if launched and rank == 0:
        _listen_to_the_door()
    run = (Run if rank == 0 else SilentRun)("train", run_folder, quiet=quiet or rank > 0)
    try:
        orders = files.read_json(orders_folder(run_folder) / ORDERS)
        run.replay_of = Path(orders["replay_of"]) if orders["replay_of"] else None
        with joined() as team:
            yield run, orders, team
        if run.unproven:
            raise run.unproven
    except TunesmithError as error:
        if not launched:
            run.fail(error)
        _leave_error(run_folder, rank, error)
        raise
    except RuntimeError as error:
        if _is_parting(error):
            _leave_error(run_folder, rank, None)
        raise


def deliver(run: Run, result: dict[str, Any], *, launched: bool) -> None:
    """Write what the first process has made."""
    if launched:
        files.write_json(run.folder / RESULT, result)
    else:
        run.finish(result)


def _is_parting(error: RuntimeError) -> bool:
    """Whether a message to another process failed, which is never the cause."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _leave_error(run_folder: Path, rank: int, error: TunesmithError | None) -> None:
    """The last words of a process; None where its partners went away."""
    import time

    kind, line = (type(error).__name__, str(error)) if error else (LOST, "")
    path = orders_folder(run_folder) / ERROR.format(rank=rank)
    files.write_json(path, {"kind": kind, "line": line, "time": time.time()})


def _listen_to_the_door() -> None:
    """In the first process: what the door passes on comes as if the signal had been sent here; its end is a SIGTERM."""

    def listen() -> None:
        for line in sys.stdin:
            signal.raise_signal(signal.Signals[line.strip()])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=listen, daemon=True).start()
