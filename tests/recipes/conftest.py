"""One smoke run of the main job for all tests of a session, whichever worker asks first."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this test session share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def alone(session_folder: Path) -> Callable[[], Any]:
    """`with alone():` keeps the other workers from serving the embedded web on the port of the same seed meanwhile."""

    @contextmanager
    def held() -> Iterator[None]:
        with (session_folder / "end_to_end.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    return held


@pytest.fixture(scope="session")
def smoke(session_folder: Path, alone: Callable[[], Any]) -> Path:
    """Folder of a finished run of preset smoke; read only.

    It runs in a process of its own: pytest replaces some hooks of `sys`, whose documentation is part of the pages.
    """
    from bloomery.recipes._inputs import usual_port

    folder = session_folder / "end_to_end_smoke"
    with alone():
        if not (folder / "report.html").exists():
            seed = next(seed for seed in count(7) if usual_port(seed))  # a port that no other program has
            command = [sys.executable, "-m", "bloomery", "run", "end_to_end", "--preset", "smoke", "--quiet"]
            command += ["--seed", str(seed), "--out", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
    return folder
