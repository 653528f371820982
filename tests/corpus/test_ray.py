"""A local cluster of two workers writes what this process writes, one of them killed in the middle of a file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bloomery.core.errors import BloomeryError, ConfigError, StorageError
from bloomery.corpus import run

sys.path.insert(0, str(Path(__file__).parent))
import engine_steps
from engine_steps import Deadly, DeadlyOnce
from test_engine import STEPS, contents, write_inputs

ray = pytest.importorskip("ray", reason='needs pip install "bloomery[ray]"')


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """One cluster for the module: starting one takes seconds."""
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False,
        logging_level="error",
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"), n_files=4)


def test_a_local_cluster_lives_as_long_as_the_run(inputs, tmp_path):
    """First in the module, before the cluster that the others share."""
    run([engine_steps.WordCount()], inputs, tmp_path / "ray", engine="ray", workers=1, quiet=True)
    assert not ray.is_initialized()
    run([engine_steps.WordCount()], inputs, tmp_path / "inline", quiet=True)
    assert contents(tmp_path / "ray") == contents(tmp_path / "inline")


def test_three_engines_one_result_with_a_worker_killed_on_the_way(cluster, inputs, tmp_path):
    """Every engine but this process loses a worker: the step kills its own process with SIGKILL at the second file."""
    marker = tmp_path / "died"
    steps = [DeadlyOnce("part1.jsonl", str(marker)), *STEPS]
    marker.touch()  # this process must survive
    run(steps, inputs, tmp_path / "inline", quiet=True)
    for engine in ("processes", "ray"):
        marker.unlink()
        run(steps, inputs, tmp_path / engine, engine=engine, workers=2, quiet=True)
        assert marker.exists()
        assert contents(tmp_path / engine) == contents(tmp_path / "inline")
    assert ray.is_initialized()  # a cluster that was there before stays


def test_a_file_that_kills_every_worker_is_named(cluster, inputs, tmp_path):
    with pytest.raises(BloomeryError, match=r"part2\.jsonl: the worker process was lost .* 3 times"):
        run([Deadly("part2.jsonl")], inputs, tmp_path / "out", engine="ray", workers=1, quiet=True)
    assert (tmp_path / "out" / "00000-part0.parquet").exists()  # what was finished before stays


def test_an_error_in_a_task_arrives_as_itself(cluster, inputs, tmp_path):
    steps = [engine_steps.Logged(str(tmp_path / "log"), fail_at="part1.jsonl")]
    with pytest.raises(StorageError, match=r"part1\.jsonl: the disk caught fire"):
        run(steps, inputs, tmp_path / "out", engine="ray", workers=2, quiet=True)


def test_only_so_many_units_are_in_flight(cluster, inputs, tmp_path, monkeypatch):
    most, wait = [], ray.wait

    def counted(tasks, **options):
        most.append(len(tasks))
        return wait(tasks, **options)

    monkeypatch.setattr(ray, "wait", counted)
    run([engine_steps.WordCount()], inputs, tmp_path / "out", engine="ray", workers=2, quiet=True)
    assert max(most) == 2
    assert len(most) == 4


def test_an_address_without_a_cluster_and_without_ray(inputs, tmp_path):
    with pytest.raises(ConfigError, match="takes no address"):
        run([engine_steps.WordCount()], inputs, tmp_path / "out", address="auto", quiet=True)
