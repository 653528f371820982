"""Real processes over gloo: every layout reads every other's files bit for bit and trains on as if nothing had been."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("layouts", "steps"),
    [
        ("one,ddp,tp", 3),
        pytest.param("one,ddp,tp,fsdp,zero,hsdp,fsdp_tp", 20, marks=pytest.mark.slow),
    ],
    ids=["two ranks", "seven layouts"],
)
def test_every_layout_goes_on_from_every_other(tmp_path: Path, layouts: str, steps: int) -> None:
    script = Path(__file__).parent / "layouts.py"
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path), layouts, str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
