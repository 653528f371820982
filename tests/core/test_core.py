from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bloomery.core.devices import pick_device, pick_dtype
from bloomery.core.errors import (
    BloomeryError,
    ConfigError,
    DataError,
    MissingExtraError,
    StorageError,
    nearest,
    require,
)
from bloomery.core.files import atomic_file, atomic_folder, read_json, write_json
from bloomery.core.hashing import digest, file_digest, hash64
from bloomery.core.progress import Progress
from bloomery.core.seeds import derive, generator, rng


def test_an_error_says_what_where_and_what_to_do() -> None:
    error = DataError("line 3 is broken", where="a.jsonl", fix="remove it")
    assert str(error) == "a.jsonl: line 3 is broken (remove it)"
    assert error.exit_code == 2
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is DataError
    assert str(copy) == str(error)


def test_a_missing_extra_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"bloomery\[web\]"):
        require("no_such_package_anywhere", "web")


def test_nearest_suggests() -> None:
    assert nearest("learning_rat", ["learning_rate", "seed"]) == "did you mean 'learning_rate'?"
    assert nearest("zzz", ["a", "b"]) == "known: a, b"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path, "w") as file:
        file.write("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="disk is full"), atomic_file(tmp_path / "a", "w") as file:
        file.write("x")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("1")
        assert not target.exists()
    with pytest.raises(RuntimeError), atomic_folder(target, ours=("*",)) as folder:
        (folder / "b").write_text("2")
        raise RuntimeError
    assert (target / "sub" / "a").read_text() == "1"
    with pytest.raises(StorageError, match="would delete sub"), atomic_folder(target, ours=("a", "c")):
        pytest.fail("refused before the work begins")
    with atomic_folder(target, ours=("s*",)) as folder:
        (folder / "c").write_text("3")
    assert os.listdir(target) == ["c"]
    assert os.listdir(tmp_path) == ["out"]


def test_a_killed_write_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from bloomery.core.files import atomic_file\n"
        "with atomic_file(sys.argv[1]) as f:\n f.write(b'x' * 100); f.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False)
    assert not (tmp_path / "a").exists()


def test_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ü": [1, None]})
    assert read_json(tmp_path / "a.json") == {"ü": [1, None]}
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        read_json(tmp_path / "b.json")


def test_hashes_are_stable_across_processes(tmp_path: Path) -> None:
    assert digest({"b": 1, "a": [1.5, "x"]}) == digest({"a": [1.5, "x"], "b": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    (tmp_path / "f").write_bytes(b"abc")
    assert file_digest(tmp_path / "f") == file_digest(tmp_path / "f")
    code = (
        "from bloomery.core.hashing import digest, hash64; from bloomery.core.seeds import derive\n"
        "print(digest([1]), hash64('é'), derive(1, 'a'))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True
        ).stdout
        for seed in ("1", "2")
    }
    assert runs == {f"{digest([1])} {hash64('é')} {derive(1, 'a')}\n".encode()}


def test_random_streams_depend_on_every_name() -> None:
    def draw(*names: object) -> float:
        return float(torch.rand(1, generator=generator(0, *names)))

    assert draw("a", 1) == draw("a", 1)
    assert len({draw("a", 1), draw("a", 2), draw("b", 1), draw("a1"), draw("a")}) == 5
    assert np.array_equal(rng(3, "x").integers(0, 99, 5), rng(3, "x").integers(0, 99, 5))


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu"
    assert pick_dtype(None, torch.device("cpu")) is torch.float32
    assert pick_dtype(None, torch.device("cuda")) is torch.bfloat16
    with pytest.raises(ConfigError, match="bfloat16"):
        pick_dtype("bfloat")
    with pytest.raises(ConfigError, match="unknown device"):
        pick_device("cpux")


def test_progress_counts_and_reports(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("crawl", total=4, unit="pages") as progress:
        for _ in range(4):
            progress.advance(1, errors=0)
    assert progress.eta == 0
    assert "crawl: 4/4 pages" in capsys.readouterr().err
    resumed = Progress("x", total=10, done=9)
    assert resumed.rate == 0
    assert resumed.eta is None


def test_importing_the_package_is_light() -> None:
    code = "import sys, bloomery; print([m for m in ('torch', 'numpy', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_every_error_has_an_exit_code() -> None:
    def kinds(base: type) -> list[type]:
        return [base, *(k for sub in base.__subclasses__() for k in kinds(sub))]

    assert {kind.exit_code for kind in kinds(BloomeryError)} <= {1, 2}
