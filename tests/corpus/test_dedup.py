from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError
from bloomery.corpus.dedup import Clusters, ExactDedup, NearDedup
from bloomery.corpus.documents import from_texts
from bloomery.corpus.minhash import bands_and_rows, minhash, permutations, word_shingles
from bloomery.corpus.steps import DROP, Barrier, decision_notes


def decide(step: Barrier, documents: list[str], batch_size: int = 1_000) -> pa.Table:
    batch = from_texts(documents)
    starts = range(0, max(len(documents), 1), batch_size)
    return step.decide(pa.concat_tables([step.sketch(batch.slice(start, batch_size)) for start in starts]))


def dropped(step: Barrier, documents: list[str], batch_size: int = 1_000) -> list[bool]:
    return [reason is not None for reason in decide(step, documents, batch_size)[DROP].to_pylist()]


def shingles(text: str, n: int) -> frozenset[tuple[str, ...]]:
    words = text.lower().split()
    if not words:
        return frozenset()
    return frozenset(tuple(words[i : i + n]) for i in range(max(len(words) - n + 1, 1)))


def similarity(a: str, b: str, n: int) -> float:
    left, right = shingles(a, n), shingles(b, n)
    return len(left & right) / len(left | right) if left and right else 0.0


def edited(text: str, edits: int, random: random.Random) -> str:
    words = text.split()
    for _ in range(edits):
        words[random.randrange(len(words))] = f"edit{random.randrange(10**6)}"
    return " ".join(words)


def corpus(seed: int, originals: int = 25, copies: int = 3, length: int = 150) -> list[str]:
    """Documents of random words, each followed somewhere by copies with 0 to 12 changed words."""
    rng = random.Random(seed)
    documents = []
    for _ in range(originals):
        text = " ".join(f"w{rng.randrange(5_000)}" for _ in range(length))
        documents += [text, *(edited(text, rng.randrange(13), rng) for _ in range(copies))]
    rng.shuffle(documents)
    return documents


def exact_clusters(documents: list[str], threshold: float, n: int) -> list[bool]:
    """Dropped or not, by comparing all pairs."""
    root = list(range(len(documents)))
    for j in range(len(documents)):
        for i in range(j):
            if root[i] != root[j] and similarity(documents[i], documents[j], n) >= threshold:
                low, high = sorted((root[i], root[j]))
                root = [low if r == high else r for r in root]
    return [r != i for i, r in enumerate(root)]


# --------------------------------------------------------------------------------------------------------------- exact


def test_exact_keeps_the_first_and_ignores_case_and_spacing():
    documents = ["A  b\nc", "x", "a b c", "", "A B\tC ", " ", "x y"]
    assert dropped(ExactDedup(), documents) == [False, False, True, False, True, True, False]
    assert decision_notes(decide(ExactDedup(), documents)) == {"clusters": 2, "largest_cluster": 3}


@given(st.lists(st.text(alphabet="ab \n", max_size=4), max_size=30), st.integers(1, 7))
@settings(deadline=None, max_examples=40)
def test_exact_equals_a_set(documents, batch_size):
    seen: set[str] = set()
    expected = []
    for text in documents:
        key = " ".join(text.lower().split())
        expected.append(key in seen)
        seen.add(key)
    assert dropped(ExactDedup(), documents, batch_size) == expected


# ---------------------------------------------------------------------------------------------------------------- near


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("threshold", [0.6, 0.8])
def test_near_finds_what_all_pairs_find(seed, threshold):
    documents = corpus(seed)
    expected = exact_clusters(documents, threshold, 5)
    found = dropped(NearDedup(threshold=threshold), documents)
    wrong = sum(f and not e for f, e in zip(found, expected, strict=True))
    missed = sum(e and not f for f, e in zip(found, expected, strict=True))
    assert wrong == 0  # every candidate is verified
    assert missed <= 0.03 * sum(expected)
    assert sum(expected) > 15


@given(st.integers(0, 10**6), st.integers(1, 50))
@settings(deadline=None, max_examples=15)
def test_near_does_not_depend_on_batches(seed, batch_size):
    documents = corpus(seed, originals=6)
    assert dropped(NearDedup(), documents, batch_size) == dropped(NearDedup(), documents)


@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=6).map(" ".join), max_size=20))
@settings(deadline=None, max_examples=40)
def test_near_with_threshold_one_is_equality_of_shingle_sets(documents):
    expected = exact_clusters(documents, 1.0, 3)
    assert dropped(NearDedup(threshold=1.0, ngram=3), documents) == expected


def test_near_never_drops_empty_documents_and_treats_short_ones_whole():
    assert dropped(NearDedup(), ["", " ", "a b", "A b", "a c", ""]) == [False, False, False, True, False, False]


def test_near_with_nothing():
    assert decide(NearDedup(), []).num_rows == 0
    assert decide(ExactDedup(), []).num_rows == 0


def test_near_reports_clusters():
    text = " ".join(f"w{i}" for i in range(200))
    notes = decision_notes(decide(NearDedup(), [text, "other " * 3, *[text] * 40, "more of it"]))
    assert (notes["clusters"], notes["largest_cluster"]) == (1, 41)
    assert notes["candidate_pairs"] == notes["duplicate_pairs"] == 40


def test_a_large_bucket_of_one_cluster_is_cheap():
    step, text = NearDedup(), " ".join(f"w{i}" for i in range(50))
    notes = decision_notes(decide(step, [text] * 3_000))
    assert notes["candidate_pairs"] == 2_999


def test_signatures_estimate_jaccard_as_well_as_datasketch():
    datasketch = pytest.importorskip("datasketch")
    rng = np.random.default_rng(0)
    ours, theirs = [], []
    a, b = permutations(128, 0)
    for _ in range(60):
        shared, own = rng.integers(0, 2**32, 300, dtype=np.uint32), int(rng.integers(1, 300))
        sets = [np.unique(np.append(shared, rng.integers(0, 2**32, own, dtype=np.uint32))) for _ in range(2)]
        truth = len(np.intersect1d(*sets)) / len(np.union1d(*sets))
        offsets = np.array([0, len(sets[0]), len(sets[0]) + len(sets[1])])
        left, right = minhash(np.concatenate(sets), offsets, a, b)
        ours.append((left == right).mean() - truth)
        sketches = [datasketch.MinHash(num_perm=128, seed=1) for _ in sets]
        for sketch, values in zip(sketches, sets, strict=True):
            sketch.update_batch([int(value).to_bytes(4, "little") for value in values])
        theirs.append(sketches[0].jaccard(sketches[1]) - truth)
    error = np.sqrt(np.mean(np.square(ours)))
    assert error < 1.3 * np.sqrt(np.mean(np.square(theirs)))
    assert error < 0.05  # the theory says at most sqrt(0.25 / 128) = 0.044
    assert abs(np.mean(ours)) < 0.015


def murmur_mix(x: int) -> int:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = (x ^ x >> shift) * factor % 2**32
    return x


def test_minhash_equals_its_formula():
    a, b = permutations(16, 3)
    values = np.array([5, 9, 2**32 - 1, 7], dtype=np.uint32)
    signatures = minhash(values, np.array([0, 3, 3, 4]), a, b)
    for row, members in enumerate(([5, 9, 2**32 - 1], [], [7])):
        for k in range(16):
            images = [(int(a[k]) * murmur_mix(x) + int(b[k])) % 2**32 for x in members]
            assert signatures[row, k] == min(images, default=2**32 - 1)


@pytest.mark.parametrize(("hashes", "seed"), [(128, 0), (112, 1), (1395, 7)])
def test_signatures_are_those_of_datasketch(hashes, seed):
    datasketch = pytest.importorskip("datasketch", minversion="2.0")
    documents = [*corpus(3, originals=10), "a", "one two three", "", "a a a a a a a"]
    shingles, offsets = word_shingles(pa.array(documents), 5)
    signatures = minhash(shingles, offsets, *permutations(hashes, seed))
    for row, begin, end in zip(signatures, offsets, offsets[1:], strict=False):
        theirs = datasketch.MinHash(num_perm=hashes, seed=seed, hashfunc=int)
        theirs.update_batch(shingles[begin:end].tolist())
        np.testing.assert_array_equal(row, theirs.hashvalues)


@given(st.lists(st.lists(st.sampled_from("abC"), max_size=9).map(" ".join), max_size=12), st.integers(1, 6))
def test_shingles_are_runs_of_words(documents, ngram):
    hashes, offsets = word_shingles(pa.array(documents, pa.string()), ngram)
    assert len(offsets) == len(documents) + 1
    for text, begin, end in zip(documents, offsets, offsets[1:], strict=False):
        mine = hashes[begin:end].tolist()
        assert mine == sorted(set(mine))
        assert len(mine) == len(shingles(text, ngram))
    ours, ends = word_shingles(pa.array(["x y z w v u", "a x y Z w v u z"]), ngram)
    assert set(ours[: ends[1]]) <= set(ours[ends[1] :])  # the same words have the same hash in any document


@given(
    st.integers(1, 30).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=20), max_size=4),
        )
    )
)
def test_clusters_are_connected_components(case):
    documents, batches = case
    clusters, root = Clusters(documents), list(range(documents))
    for pairs in batches:
        edges = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        clusters.join(edges[:, 0], edges[:, 1])
        for one, other in pairs:
            low, high = sorted((root[one], root[other]))
            root = [low if r == high else r for r in root]
    assert clusters.find(np.arange(documents)).tolist() == root


def test_bands_can_be_given():
    documents = corpus(1)
    found = decide(NearDedup(hashes=112, bands=14, threshold=0.75), documents)
    notes = decision_notes(found)
    assert (notes["bands"], notes["rows"]) == (14, 8)
    expected = exact_clusters(documents, 0.75, 5)
    assert all(e or reason is None for e, reason in zip(expected, found[DROP].to_pylist(), strict=True))
    assert notes["duplicate_pairs"] > 15


def test_a_pair_is_compared_once():
    """Documents that share the first half of their words meet in many bands, but are too different."""
    common = " ".join(f"w{i}" for i in range(100))
    documents = [common + " " + " ".join(f"d{d}x{i}" for i in range(40)) for d in range(12)]
    notes = decision_notes(decide(NearDedup(), documents))
    assert notes["duplicate_pairs"] == 0
    assert 0 < notes["candidate_pairs"] <= 12 * 11 // 2


def test_minhash_does_not_depend_on_blocks():
    rng = np.random.default_rng(1)
    sizes = [0, 3_000, 1, 0, 1_024, 2]
    values = rng.integers(0, 2**32, sum(sizes), dtype=np.uint32)
    offsets = np.cumsum([0, *sizes])
    a, b = permutations(8, 0)
    whole = minhash(values, offsets, a, b)
    for row in range(len(sizes)):
        part = values[offsets[row] : offsets[row + 1]]
        np.testing.assert_array_equal(whole[row : row + 1], minhash(part, np.array([0, len(part)]), a, b))


@given(st.floats(0.3, 1.0), st.integers(16, 256), st.floats(0.6, 0.99))
@settings(deadline=None, max_examples=60)
def test_bands_reach_the_recall_where_possible(threshold, hashes, recall):
    bands, rows = bands_and_rows(threshold, hashes, recall)
    assert bands * rows <= hashes
    if rows > 1:
        assert 1 - (1 - threshold**rows) ** bands >= recall


def test_plan_and_settings():
    plan = NearDedup(hashes=128).plan(1_000_000, 6_000_000_000)
    assert 512e6 <= plan.ram_bytes < 1e9
    assert 4e9 < plan.disk_bytes < 5e9
    for wrong in ({"bands": 0}, {"bands": 129}, {"threshold": 0.0}, {"hashes": 0}, {"ngram": 0}, {"recall": 1.0}):
        with pytest.raises(ConfigError, match="NearDedup"):
            NearDedup(**wrong)
