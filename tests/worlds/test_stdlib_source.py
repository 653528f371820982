"""The standard library's source: whole modules on one side, the same split every time, odd trees survived."""

from __future__ import annotations

from pathlib import Path

import pytest

from bloomery.core.errors import EmptyError
from bloomery.worlds.stdlib_source import source_files, sources


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("alpha.py", "beta/__init__.py", "beta/inner.py", "gamma.py", "test/test_alpha.py", "delta/tests/a.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n" * 20)
    (tmp_path / "broken.py").write_bytes(b"\xff\xfe\x00x = 1\n" * 40)
    (tmp_path / "empty.py").write_text("")
    return tmp_path


def test_files_without_tests_and_empty_ones(tree: Path) -> None:
    paths = [file.path for file in source_files(tree)]
    assert paths == ["alpha.py", "beta/__init__.py", "beta/inner.py", "broken.py", "gamma.py"]
    assert source_files(tree)[2].module == "beta"


@pytest.mark.parametrize("seed", range(4))
def test_no_module_is_on_both_sides(tree: Path, seed: int) -> None:
    split = sources(seed, held_out=0.4, root=tree)
    train, held = ({file.module for file in side} for side in (split.train, split.held_out))
    assert not train & held
    assert train | held == {"alpha", "beta", "broken", "gamma"}
    assert held
    assert sum(len(f.text) for f in split.held_out) <= 0.4 * sum(len(f.text) for f in source_files(tree))
    assert sources(seed, held_out=0.4, root=tree) == split


def test_the_running_library_is_large_enough() -> None:
    split = sources(0)
    size = sum(len(file.text) for file in split.train)
    assert size > 2_000_000
    assert 0.02 < sum(len(file.text) for file in split.held_out) / size < 0.15


def test_a_python_without_source_says_so(tmp_path: Path) -> None:
    with pytest.raises(EmptyError, match="no Python source"):
        source_files(tmp_path)
