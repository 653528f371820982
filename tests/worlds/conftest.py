"""Sites to test on: one small library written here, with every habit that matters, and parts of the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from bloomery.worlds.installed_docs import InstalledDocs

FILES = {
    "__init__.py": '''
"""Zebra library: the marker of zoo.

Use `zoo.animals.Zebra` or :func:`~zoo.feed`.
"""
raise SystemExit("never imported")
from . import animals
from ._impl import feed, _hidden
from .animals import Zebra
from ._impl import *
''',
    "_impl.py": '''
"""Marker impl-module."""
import os
__all__ = ["feed", "wash"]

def feed(animal, amount: float = 1.0, *, at=None) -> bool:
    """Give food to an animal marker-feed.

    Args:
        animal (Zebra): who eats.
        amount: how much.

    >>> feed(Zebra(), 2)
    True
    """

def wash(animal):
    """Clean an animal with water marker-wash."""

def _hidden():
    """Marker hidden."""

def unlisted():
    """Marker unlisted."""
''',
    "animals/__init__.py": '''
"""Animals marker-animals."""
from typing import overload
from zoo.animals.base import Base

class Zebra(Base):
    """A striped animal marker-zebra."""

    def __init__(self, stripes=7, /, *names, colour="white", **rest):
        """Not shown: the class has its own text."""

    @overload
    def run(self, speed: int) -> int: ...
    @overload
    def run(self, speed: str) -> str: ...
    def run(self, speed):
        """Move quickly over the ground marker-run."""

    @property
    def stripes(self) -> int:
        """Number of stripes on the coat marker-stripes."""

    @staticmethod
    def of(a, b): "Build from parts marker-of."

    @classmethod
    def default(cls, a): "The usual animal marker-default."

    def _private(self):
        """Marker private-method."""

    class Foot:
        """End of a leg marker-foot."""
        def stamp(self):
            """Hit the ground marker-stamp."""

class Okapi:
    __doc__ = "Shy " + r"""relative of {giraffes} marker-okapi.""".format(giraffes=1)

    def __init__(self) -> None: "Not shown either."

def lt(a, b):
    return a < b & 1

async def gather(*herd): "Bring the herd together marker-gather."
''',
    "animals/base.py": '''
"""Base things marker-base."""
try:
    from missing import Base
except ImportError:
    class Base:
        """Common to all animals marker-common."""
        def eat(self):
            """Take food in marker-eat. See `feed` of `zoo`, :func:`zoo.feed` and ``zoo.feed()``."""
''',
    "animals/tests/test_zebra.py": '"""Marker test."""',
    "_vendor/lion.py": '"""A bundled lion marker-lion."""\ndef roar():\n    """Make a loud noise marker-roar."""\n',
}


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the small package `zoo`, which must not be imported."""
    root = tmp_path_factory.mktemp("library") / "zoo"
    for name, text in FILES.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.lstrip("\n"), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def zoo_site(zoo: Path) -> InstalledDocs:
    return InstalledDocs([str(zoo)])


@pytest.fixture(scope="session")
def stdlib() -> InstalledDocs:
    return InstalledDocs(["stdlib"])
