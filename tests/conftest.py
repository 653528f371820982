"""Shared test set-up: one thread per worker (two workers on two cores), derandomised property tests, data roots."""

from __future__ import annotations

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in child processes
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # the suite runs in the background: tests interrupt children,
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which would inherit that it is ignored

import pytest
from hypothesis import settings

settings.register_profile("ci", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("ci")

BESIDE = Path(__file__).resolve().parents[2] / "shared"


def _root(variable: str, name: str) -> Path:
    root = Path(os.environ.get(variable, BESIDE / name))
    if not root.is_dir():
        pytest.skip(f"no folder {root}: set {variable} to run this test")
    return root


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of real data (environment variable BLOOMERY_DATA)."""
    return _root("BLOOMERY_DATA", "data")


@pytest.fixture(scope="session")
def golden_root() -> Path:
    """Folder of reference vectors (environment variable BLOOMERY_GOLDEN)."""
    return _root("BLOOMERY_GOLDEN", "golden")
