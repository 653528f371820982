"""The main job killed (SIGKILL, with all of its worker processes) and run again ends with the same numbers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

STAGES = ["crawl", "curated", "raw", "packs", "pretrain/curated-0", "pretrain/raw-0", "tune/0", "model"]


def seed_of(smoke: Path) -> int:
    return int(yaml.safe_load((smoke / "config.yaml").read_text())["seed"])


def start(out: Path, seed: int) -> subprocess.Popen[bytes]:
    """The smoke preset in a process group of its own."""
    command = [sys.executable, "-m", "bloomery", "run", "end_to_end", "--preset", "smoke", "--quiet"]
    return subprocess.Popen(
        [*command, "--seed", str(seed), "--out", str(out)],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def kill_when(child: subprocess.Popen[bytes], reached: Callable[[], object], delay: float = 0.0) -> None:
    """Wait for a moment in a run, and `delay` seconds, then kill it and everything it has started."""
    assert child.stderr is not None
    with child.stderr:
        while not reached():
            assert child.poll() is None, child.stderr.read().decode()
            time.sleep(0.01)
        time.sleep(delay)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def finish(out: Path, seed: int) -> None:
    child = start(out, seed)
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors.decode()


def running(out: Path, stage: str) -> bool:
    """Whether a stage has begun (or is done already)."""
    file = out / "stages.json"
    return file.exists() and stage in {record["name"] for record in json.loads(file.read_text())}


def outcome(run: Path) -> dict[str, Any]:
    """All numbers of a run and the tokens they come from."""
    claims = json.loads((run / "claims.json").read_text())["claims"]
    values = {f"{c['statement']} {side}": c[side] for c in claims for side in ("ours", "baseline")}
    packs = {str(file.relative_to(run)): file.read_bytes() for file in sorted((run / "packs").rglob("*.bin"))}
    model = (run / "model" / "model.safetensors").read_bytes()
    return {"claims": values, "packs": packs, "model": model}


def test_killed_while_crawling_and_while_curating(smoke: Path, tmp_path: Path, alone: Callable[[], Any]) -> None:
    out, seed = tmp_path / "run", seed_of(smoke)
    with alone():
        kill_when(start(out, seed), lambda: any((out / "crawl" / "pages").glob("*.warc.gz")))
        kill_when(start(out, seed), lambda: (out / "curated" / ".bloomery").exists())
        assert not (out / "claims.json").exists()
        finish(out, seed)
    assert outcome(out) == outcome(smoke)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(3))
def test_killed_at_random_moments(smoke: Path, tmp_path: Path, alone: Callable[[], Any], trial: int) -> None:
    out, seed, chance = tmp_path / "run", seed_of(smoke), random.Random(trial)
    with alone():
        for place in sorted(chance.sample(range(len(STAGES)), 3)):
            kill_when(start(out, seed), partial(running, out, STAGES[place]), chance.uniform(0, 0.4))
        finish(out, seed)
    assert outcome(out) == outcome(smoke)


@pytest.mark.slow
def test_same_seed_same_numbers_and_another_seed_others(smoke: Path, tmp_path: Path, alone: Callable[[], Any]) -> None:
    with alone():
        finish(tmp_path / "same", seed_of(smoke))
        finish(tmp_path / "other", seed_of(smoke) + 1)
    assert outcome(tmp_path / "same") == outcome(smoke)
    assert outcome(tmp_path / "other")["claims"] != outcome(smoke)["claims"]
