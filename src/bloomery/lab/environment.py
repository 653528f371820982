"""Where a run ran: versions, processor, memory, commit. No names of users or hosts, no environment variables."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self


def describe() -> dict[str, Any]:
    """The facts that `env.json` records."""
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": _version("torch"),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": usable_cpus(),
        "memory_gib": _memory_gib(),
        "gpus": _gpus(),
        "commit": _commit(),
        "packages": _packages(),
    }
    return {name: value for name, value in facts.items() if value not in (None, [], {})}


def usable_cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class PeakMemory:
    """Peak resident memory of this process and its children while the block runs, sampled a few times a second.

    Children count without the pages they share with others. `.bytes` is 0 where `/proc` does not exist.
    """

    INTERVAL = 0.25  # seconds

    def __init__(self) -> None:
        self.bytes = 0
        self._highest = _lifetime_peak()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._sample()
        if (highest := _lifetime_peak()) > self._highest:  # a peak between two samples, known to the kernel
            self.bytes = max(self.bytes, highest)

    def _watch(self) -> None:
        while not self._over.wait(self.INTERVAL):
            self._sample()

    def _sample(self) -> None:
        total = _resident(os.getpid(), shared=True)
        total += sum(_resident(child, shared=False) for child in _descendants(os.getpid()))
        self.bytes = max(self.bytes, total)


def _lifetime_peak() -> int:
    """The largest this process has ever been."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _resident(pid: int, shared: bool) -> int:
    try:
        _, resident, common, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except (OSError, ValueError):  # no /proc, or the process has just ended
        return 0
    return (int(resident) - (0 if shared else int(common))) * os.sysconf("SC_PAGE_SIZE")


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(word) for word in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *_descendants(child)]
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> dict[str, str]:
    """Installed versions of bloomery and what it declares to need, extras included."""
    try:
        needed = importlib.metadata.requires("bloomery") or []
    except importlib.metadata.PackageNotFoundError:
        needed = []
    names = {"bloomery", *(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in needed)}
    return {name: version for name in sorted(names, key=str.lower) if (version := _version(name))}


def _processor() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")  # a run that never needed torch must not pay for its import here
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _commit() -> str | None:
    """Commit of the checkout this code runs from, with `+` for uncommitted changes; None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *command: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
