from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Runs go to ./runs by default: keep them out of the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recipe_file(tmp_path):
    """A recipe in a file of its own: three stages, the middle one dies while a file called `die` exists."""
    file = tmp_path / "toy.py"
    file.write_text(RECIPE, encoding="utf-8")
    return file


RECIPE = '''
"""Toy."""
from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from bloomery.core.errors import ConfigError
from bloomery.lab import Claim, Recipe, Run, recipe


@dataclass
class Optimiser:
    lr: float = 0.1
    """Rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Averages."""


@recipe(paper="arXiv:2406.11794", stage="data")
@dataclass(kw_only=True)
class Toy(Recipe):
    """Half of everything is noise.

    The rest of the docstring.
    """

    presets: ClassVar = {
        "smoke": {"pages": 3, "optimiser": {"lr": 0.5}},
        "cpu": {},
        "gpu": {"pages": 1000},
    }

    pages: int = 10
    """How many pages."""
    scale: float = 2.0
    """Only the last stage looks at it."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds."""
    optimiser: Optimiser = field(default_factory=Optimiser)

    def __post_init__(self) -> None:
        if self.pages < 1:
            raise ConfigError(f"pages={self.pages}", fix="at least 1")

    def run(self, run: Run) -> Iterator[Claim]:
        def note(name: str) -> None:
            with Path("calls.txt").open("a") as file:
                file.write(name + "\\n")

        def crawl() -> dict:
            note("crawl")
            run.log(1, pages=self.pages)
            return {"pages": (1, 2, self.pages)}

        crawled = run.stage("crawl", pages=self.pages)(crawl)
        assert crawled == {"pages": [1, 2, self.pages]}

        with run.stage("train", pages=self.pages, optimiser=self.optimiser) as stage:
            if stage.todo:
                note("train")
                done = stage.folder / "step.txt"
                first = int(done.read_text()) + 1 if done.exists() else 0
                for step in range(first, 10):
                    run.log(step, loss=1 / (step + 1))
                    if step % 2 == 1:
                        done.write_text(str(step))
                    if step == 6 and Path("die").exists():
                        os.kill(os.getpid(), signal.SIGKILL)
                run.text("samples", "<script>alert('x')</script> & more", "What it says")
                stage.result = first
        resumed_at = stage.result

        @run.stage("measure", scale=self.scale)
        def measured():
            note("measure")
            return self.scale

        run.table("facts", ["what", "value"], [["resumed at", resumed_at], ["lr", self.optimiser.lr]])
        ours = {seed: 1.0 - 0.1 * measured + 0.01 * seed for seed in self.seeds}
        yield Claim("Ours is lower.", self.paper, ours, {seed: 1.0 for seed in self.seeds}, "lower", 0.05, "nats/byte")
'''
