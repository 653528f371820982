from __future__ import annotations

import json

import pytest

from bloomery.cli.main import main


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Commands write to the working folder by default: keep them out of the checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BLOOMERY_DEBUG", raising=False)


@pytest.fixture
def bloomery(capsys):
    """Run a command in this process: (exit code, standard output, standard error)."""

    def run(*argv):
        capsys.readouterr()
        code = main([str(argument) for argument in argv])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture
def ok(bloomery):
    """Run a command that must succeed with `--json`, and return the document it prints."""

    def run(*argv):
        code, out, err = bloomery(*argv, "--json")
        assert code == 0, err
        return json.loads(out, parse_constant=pytest.fail)

    return run


@pytest.fixture
def refused(bloomery):
    """Run a command on bad input: exit code 2, nothing on standard output, one line on standard error."""

    def run(*argv):
        code, out, err = bloomery(*argv)
        assert (code, out) == (2, "")
        assert err.startswith("bloomery: ")
        assert err.count("\n") == 1
        return err.removeprefix("bloomery: ").strip()

    return run


@pytest.fixture
def toy(tmp_path):
    """A recipe file."""
    file = tmp_path / "toy.py"
    file.write_text(RECIPE, encoding="utf-8")
    return file


RECIPE = '''
from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from bloomery.lab import Claim, Recipe, Run, recipe


@dataclass
class Optimiser:
    lr: float = 0.1
    """Step size."""


@recipe(paper="arXiv:2406.11794", stage="data")
@dataclass(kw_only=True)
class Toy(Recipe):
    """Half of everything is noise."""

    presets: ClassVar = {"smoke": {"pages": 3}, "cpu": {}, "gpu": {"pages": 1000}}

    pages: int = 10
    """How many pages."""
    gain: float = 0.1
    """By how much ours wins."""
    sources: tuple[str, ...] = ()
    """Where from."""
    shuffle: bool = True
    """Whether to."""
    end: Literal["well", "bug", "ctrl-c", "wait"] = "well"
    """How it ends."""
    optimiser: Optimiser = field(default_factory=Optimiser)

    def run(self, run: Run) -> Iterator[Claim]:
        with run.stage("work") as stage:
            if self.end == "bug":
                {}["missing"]
            if self.end == "ctrl-c":
                raise KeyboardInterrupt
            if self.end == "wait":
                Path("waiting").touch()
                time.sleep(60)
            stage.result = self.pages
        yield Claim("Ours is lower.", self.paper, {0: 1 - self.gain}, {0: 1.0}, "lower", 0.05, "nats/byte")
'''
