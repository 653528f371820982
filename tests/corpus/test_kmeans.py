"""Hierarchical k-means and balanced sampling: equal to the reference with its own draws, and their properties."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus.balanced import BalancedSample, balanced_sample, points_under, quota, tree_of
from bloomery.corpus.kmeans import Clustering, hierarchical_kmeans, kmeans, plus_plus, potential


def cases(golden_root: Path, prefix: str) -> list[tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    found = sorted((golden_root / "data-selection-extras").glob(f"{prefix}*.json"))
    if not found:
        pytest.skip(f"no case {prefix}* in {golden_root / 'data-selection-extras'}")
    return [(json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))) for path in found]


def sampling(golden_root: Path, kind: str) -> list[dict[str, Any]]:
    file = golden_root / "data-selection-extras" / "sampling.jsonl"
    if not file.exists():
        pytest.skip(f"no {file}")
    return [row for line in file.read_text().splitlines() if (row := json.loads(line))["kind"] == kind]


class Replay:
    """The reference's draws, in order."""

    def __init__(self, first: int = 0, uniform: Any = (), choices: Any = ()) -> None:
        self.first, self.uniform, self.choices = first, iter(uniform), iter(choices)

    def integers(self, high: int) -> int:
        return self.first

    def random(self, size: int) -> np.ndarray:
        return np.asarray(next(self.uniform))

    def choice(self, a: np.ndarray, size: int, replace: bool) -> np.ndarray:
        candidates, chosen = next(self.choices)
        if candidates is not None:
            assert list(a) == candidates
        assert len(chosen) == size
        return np.asarray(chosen, dtype=np.int64)


def test_kmeans_equals_the_reference(golden_root: Path) -> None:
    for case, tensors in [c for c in cases(golden_root, "kmeans_") if "iterations" in c[0]]:
        tolerance = case["tolerance"]
        for steps in case["iterations"]:
            found = kmeans(tensors["in.x"], tensors["in.init"], case["distance"], steps)
            assert torch.equal(found.assignment, tensors[f"out.assignment.{steps}"]), (case["case"], steps)
            torch.testing.assert_close(
                found.centroids, tensors[f"out.centroids.{steps}"], rtol=0, atol=tolerance["centroids"]
            )
            expected = float(tensors[f"out.potential.{steps}"])
            assert potential(tensors["in.x"], found.assignment) == pytest.approx(
                expected, rel=tolerance["potential_relative"]
            )
        members = found.members(tensors["in.x"], case["distance"])
        assert [len(m) for m in members] == np.diff(tensors["out.sorted_offsets"]).tolist()
        assert np.concatenate(members).tolist() == tensors["out.sorted_members"].tolist()


def test_plus_plus_equals_the_reference(golden_root: Path) -> None:
    for case, tensors in cases(golden_root, "kmeans_plusplus"):
        draws = Replay(int(tensors["in.first"]), tensors["in.uniform"].numpy())
        assert plus_plus(tensors["in.x"], case["k"], draws).tolist() == tensors["out.indices"].tolist()


def test_hierarchies_equal_the_reference(golden_root: Path) -> None:
    for case, tensors in cases(golden_root, "hierarchical_"):
        starts = iter(sorted(name for name in tensors if name.startswith("in.init.")))
        choices = []
        if "in.chosen" in tensors:
            choices = [(None, c) for c in np.split(tensors["in.chosen"].numpy(), tensors["in.chosen_offsets"][1:-1])]
        levels = hierarchical_kmeans(
            tensors["in.x"],
            case["clusters"],
            sample_sizes=case["sample_sizes"],
            resamples=case["n_resamples"],
            strategy=case["strategy"] or "closest",
            steps=case["lloyd_iterations"],
            initialise=lambda rows, k, starts=starts, tensors=tensors: tensors[next(starts)],
            draws=Replay(choices=choices),
        )
        assert next(starts, None) is None, case["case"]
        for number, level in enumerate(levels, start=1):
            assert torch.equal(level.assignment, tensors[f"out.level{number}.assignment"]), (case["case"], number)
            torch.testing.assert_close(level.centroids, tensors[f"out.level{number}.centroids"], rtol=0, atol=1e-10)


def test_quotas_equal_the_reference(golden_root: Path) -> None:
    for row in sampling(golden_root, "quota"):
        found = quota(np.array(row["sizes"]) * row["multiplier"], row["target"])
        out = row["out"]
        assert (found.cut, found.base.tolist(), found.extra) == (out["cut"], out["base"], out["extra"]), row
        assert found.candidates.tolist() == out["candidates"], row
        assert found.base.sum() + found.extra == out["total"], row


def test_samples_equal_the_reference(golden_root: Path) -> None:
    trees = {row["tree"]: row for row in sampling(golden_root, "tree")}
    for row in sampling(golden_root, "sample"):
        tree = [[np.array(members, dtype=np.int64) for members in level] for level in trees[row["tree"]]["levels"]]
        assert [sizes.tolist() for sizes in points_under(tree)] == trees[row["tree"]]["sizes"]
        choices = [(choice["candidates"], choice["chosen"]) for choice in row["choices"]]
        found = balanced_sample(
            tree,
            row["target"],
            multiplier=row["multiplier"],
            strategy={"c": "closest", "r": "random"}[row["strategy"]],
            draws=Replay(choices=choices),
        )
        assert found.tolist() == row["out"]["indices"], {
            k: row[k] for k in ("tree", "target", "multiplier", "strategy")
        }


@given(st.lists(st.integers(0, 40), min_size=1, max_size=12), st.integers(0, 300))
def test_a_quota_is_the_best_that_fits(sizes: list[int], target: int) -> None:
    found = quota(np.array(sizes), target)
    fitting = [c for c in range(max(sizes) + 1) if sum(min(c, n) for n in sizes) <= target]
    assert found.cut == max(fitting)
    assert found.base.sum() + found.extra == min(target, sum(sizes))
    assert 0 <= found.extra <= len(found.candidates)


@given(st.integers(0, 2**32), st.integers(0, 90))
def test_a_sample_has_the_wanted_size_and_no_repeats(seed: int, target: int) -> None:
    points = torch.randn(90, 2, generator=torch.Generator().manual_seed(seed % 2**31))
    levels = hierarchical_kmeans(points, (12, 3), sample_sizes=(3, 2), resamples=1, steps=5, seed=seed)
    found = balanced_sample(tree_of(levels, points), target, seed=seed)
    assert len(found) == len(set(found.tolist())) == target
    again = balanced_sample(tree_of(levels, points), target, seed=seed)
    assert np.array_equal(found, again)


def test_equal_to_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.cluster")
    points = torch.randn(300, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = kmeans(points, points[:7], steps=50)
    peer = sklearn.KMeans(7, init=points[:7].numpy(), n_init=1, max_iter=50, tol=0).fit(points.numpy())
    assert np.array_equal(found.assignment.numpy(), peer.labels_)
    assert potential(points, found.assignment) == pytest.approx(peer.inertia_, rel=1e-9)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(200, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whole = kmeans(points, points[:9], steps=5)
    monkeypatch.setattr("bloomery.corpus.kmeans.BLOCK", 100)
    pieces = kmeans(points, points[:9], steps=5)
    assert torch.equal(whole.assignment, pieces.assignment)


def test_rare_concepts_survive() -> None:
    """A common and a rare cloud: a balanced sample takes the same from both, a random one does not."""
    generator = torch.Generator().manual_seed(0)
    points = torch.cat([torch.randn(1900, 2, generator=generator), 20 + torch.randn(100, 2, generator=generator)])
    levels = hierarchical_kmeans(points, (100, 2), seed=1)
    found = balanced_sample(tree_of(levels, points), 100, seed=1)
    assert (found >= 1900).sum() == 50


def test_the_barrier_keeps_the_sample() -> None:
    points = np.concatenate([np.zeros((90, 2)), np.ones((10, 2))]) + np.linspace(0, 0.1, 100)[:, None]
    column = pa.array(points.tolist(), pa.list_(pa.float32()))
    step = BalancedSample("embedding", clusters=(10, 2), target=20)
    answer = step.decide(step.sketch(pa.record_batch({"embedding": column})))
    kept = np.flatnonzero(answer.column("_drop").is_null().to_numpy())
    assert len(kept) == 20
    assert (kept >= 90).sum() == 10


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda p: hierarchical_kmeans(p, ()), "clusters"),
        (lambda p: hierarchical_kmeans(p, (2, 5)), "fall"),
        (lambda p: hierarchical_kmeans(p, (5, 2), sample_sizes=(1,)), "sample sizes"),
        (lambda p: hierarchical_kmeans(p * float("nan"), (5,)), "row 0"),
        (lambda p: hierarchical_kmeans(p, (5,), distance="cos"), "length"),
        (lambda p: balanced_sample([[np.arange(3)]], -1), "target"),
        (lambda p: BalancedSample("e", (5,)), "target or a fraction"),
        (lambda p: BalancedSample("e", (5,), fraction=2.0), "fraction"),
    ],
)
def test_what_cannot_be_done_is_said(call: Any, match: str) -> None:
    with pytest.raises((ConfigError, DataError), match=match):
        call(torch.randn(20, 3, generator=torch.Generator().manual_seed(0)))


def test_more_clusters_than_points() -> None:
    points = torch.arange(6.0).reshape(3, 2)
    (level,) = hierarchical_kmeans(points, (5,), steps=3)
    assert isinstance(level, Clustering)
    assert len(level.centroids) == 3
