"""What this machine has: cores, memory, GPU, native bf16. Asks the system, never torch."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

KERNELS = 64
"""Shapes; a layer's forward and backward over up to 64 rows have less than 48, and the next layer has the same ones."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine as the plan sees it; bytes are bytes."""

    cores: int
    memory_bytes: int
    """RAM a process may use: physical memory or the cgroup's limit, whichever is less."""
    available_bytes: int
    """RAM free right now, within that limit."""
    gpu_name: str = ""
    gpu_memory_bytes: int = 0
    gpu_available_bytes: int = 0
    native_bf16: bool = False
    """The processor (or GPU) multiplies bf16 itself, so that bf16 is faster and not emulated."""
    cuda_build: bool = False
    """The installed torch is one for CUDA; loaded, its libraries hold memory with or without a GPU."""

    @property
    def device(self) -> str:
        """`cuda` or `cpu`: where training runs."""
        return "cuda" if self.gpu_name else "cpu"

    @property
    def training_bytes(self) -> int:
        """Memory a training run may take on `device`."""
        return self.gpu_available_bytes if self.gpu_name else self.available_bytes


def probe() -> Machine:
    """Look at the machine now."""
    total, available = _memory()
    name, gpu_total, gpu_free, capability = _gpu()
    bf16 = capability >= 8.0 if name else bool({"avx512_bf16", "amx_bf16", "bf16"} & _cpu_flags())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(cores, total, available, name, gpu_total, gpu_free, bf16, _is_cuda_build())


def hush_libraries() -> None:
    """Keep what libraries say to us, not to the person at the screen, off it."""
    import logging
    import warnings

    warnings.simplefilter("ignore", FutureWarning)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)  # it sets its own level


def set_environment() -> None:
    """Tell torch's libraries how to wait and how much to keep; call before torch is loaded. What the environment says wins.

    OpenMP threads spin briefly, then sleep: those that spin long are a disaster beside anything else, those that never spin
    cost a quarter of the speed of an idle machine (docs/decisions/004). oneDNN and ideep each keep the code of the last
    KERNELS shapes of a matrix product, and not of 1024, which is a quarter of a GiB for rows of many lengths (005).
    GPUs are numbered as nvidia-smi, which the plan asks, numbers them.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(KERNELS))
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


def memory_bytes() -> int:
    """The RAM this process holds now (resident set); a read of a few microseconds on Linux."""
    pages = _lines("/proc/self/statm")
    if pages:
        return int(pages[0].split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import psutil

    return psutil.Process().memory_info().rss


def peak_memory_bytes() -> int:
    """The most RAM this process has held (resident set) since the last `reset_peak_memory`."""
    for line in _lines("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def give_back_memory() -> None:
    """Hand what was freed back to the system: glibc keeps it in pieces that work of another shape does not fill."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def reset_peak_memory() -> None:
    """Start counting the peak anew; where the system cannot (not Linux), the peak stays that of the process.

    What earlier work has freed is given back first: it would count as this work's.
    """
    gc.collect()
    give_back_memory()
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5", encoding="ascii")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _memory() -> tuple[int, int]:
    facts = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.split()[1:2]}
    if not facts:
        import psutil

        memory = psutil.virtual_memory()
        return memory.total, memory.available
    total, available = facts["MemTotal"], facts["MemAvailable"]
    limit, used = _lines("/sys/fs/cgroup/memory.max"), _lines("/sys/fs/cgroup/memory.current")
    if limit and limit[0].isdigit() and used:
        total = min(total, int(limit[0]))
        available = min(available, int(limit[0]) - int(used[0]))
    return total, available


def _cpu_flags() -> set[str]:
    for line in _lines("/proc/cpuinfo"):
        if line.startswith(("flags", "Features")):
            return set(line.split(":", 1)[1].split())
    return set()


def _gpu() -> tuple[str, int, int, float]:
    """Name, bytes, free bytes and capability of the first GPU that CUDA_VISIBLE_DEVICES leaves to torch."""
    tool, visible = shutil.which("nvidia-smi"), os.environ.get("CUDA_VISIBLE_DEVICES")
    first = (visible or "").split(",")[0].strip()
    if not tool or first == "-1" or (visible is not None and not first):
        return "", 0, 0, 0.0
    which = [f"--id={first}"] if first else []
    query = [tool, *which, "--query-gpu=name,memory.total,memory.free,compute_cap", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode or not done.stdout.strip():
        return "", 0, 0, 0.0
    name, total, free, capability = (part.strip() for part in done.stdout.splitlines()[0].rsplit(",", 3))
    return name, int(total) << 20, int(free) << 20, float(capability)


def _is_cuda_build() -> bool:
    """Look for CUDA among torch's files: their version need not name it, and to load torch takes seconds."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return False
    return any(Path(torch.origin).with_name("lib").glob("*torch_cuda.*"))
