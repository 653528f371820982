"""Grow a domain corpus from a small seed: DeepSeekMath's loop (arXiv 2402.03300, §2.1; also DeepSeek-Coder-V2).

    repeat: train a classifier on the seed against random pages; score the pool;
            a host with more than a tenth of its pages near the top is a candidate;
            somebody says which of its addresses are on topic; their pages join the seed

The hosts are what makes it work: a site is on topic as a whole, also in pages that the classifier misses. Adding the
top-scored pages themselves as positives makes the classifier believe itself, and it drifts; `Round.seed_recall` shows
that, measured on seed texts it never sees. What people (or a model) decide is recorded, one YAML file for all rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
import yaml

from bloomery.core.errors import ConfigError, DataError
from bloomery.core.files import atomic_file
from bloomery.core.log import logger
from bloomery.core.seeds import rng
from bloomery.corpus.documents import texts
from bloomery.corpus.quality import LinearScorer, Scorer
from bloomery.corpus.readers import find_inputs, read_documents
from bloomery.corpus.steps import kept

HOST_SHARE = 0.1  # of a host's pages among the top, above which it is a candidate
HOST_CAP = 0.01  # of the positives that one host may give
HELD_OUT = 0.1  # of the seed texts that measure the drift
DRIFT = 0.3  # fall of the recall on them that is warned about
DONE = 0.02  # a round that adds less than this share to the collection is the last

Annotate = Callable[[str, Sequence[str]], Sequence[str]]
"""(host, addresses of its best pages) -> prefixes of addresses that are on topic; none where the host is not."""
Train = Callable[[Sequence[str], Sequence[str], int], Scorer]
"""(positives, negatives, seed) -> a scorer."""


class Pool(Protocol):
    """Pages to mine. Addresses are in memory, texts are asked for."""

    urls: Sequence[str]

    def texts(self, pages: np.ndarray) -> list[str]:
        """The texts of the pages with these numbers."""

    def scores(self, scorer: Scorer) -> np.ndarray:
        """The score of every page: float32 (pages,)."""


@dataclass
class MemoryPool:
    """A pool whose texts are in memory."""

    urls: Sequence[str]
    content: Sequence[str]

    def texts(self, pages: np.ndarray) -> list[str]:
        """The texts of the pages with these numbers."""
        return [self.content[page] for page in pages]

    def scores(self, scorer: Scorer) -> np.ndarray:
        """The score of every page: float32 (pages,)."""
        return np.asarray(scorer.score(self.content), dtype=np.float32)


class FolderPool:
    """A pool of corpus files, read batch by batch; only addresses and places are in memory."""

    def __init__(self, inputs: str | Path | Sequence[str | Path]) -> None:
        self._files = find_inputs(inputs)
        self.urls: list[str] = []
        self._first = [0]
        for file in self._files:
            for batch in read_documents(file):
                good = kept(batch)
                names = zip(good.column("url").to_pylist(), good.column("id").to_pylist(), strict=True)
                self.urls += [url or f"unknown:///{name}" for url, name in names]
            self._first.append(len(self.urls))

    def texts(self, pages: np.ndarray) -> list[str]:
        """The texts of the pages with these numbers; reads the files they are in."""
        wanted = np.asarray(pages)
        found: dict[int, str] = {}
        for number, file in enumerate(self._files):
            inside = wanted[(wanted >= self._first[number]) & (wanted < self._first[number + 1])]
            if not len(inside):
                continue
            row, places = self._first[number], np.sort(inside)
            for batch in read_documents(file):
                good = kept(batch)
                here = places[(places >= row) & (places < row + good.num_rows)]
                content = texts(good)
                found.update((int(place), content[int(place) - row].as_py()) for place in here)
                row += good.num_rows
        return [found[int(page)] for page in wanted]

    def scores(self, scorer: Scorer) -> np.ndarray:
        """The score of every page: float32 (pages,)."""
        parts = [
            np.asarray(scorer.score(texts(kept(batch)).to_pylist()), dtype=np.float32)
            for file in self._files
            for batch in read_documents(file)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)


@dataclass
class Round:
    """What one round found. `collected` are the pages on topic so far, `order` all pages, best score first."""

    number: int
    scorer: Scorer
    scores: np.ndarray
    order: np.ndarray
    candidates: dict[str, float]  # host -> share of its pages near the top
    prefixes: list[str]  # on topic, of all rounds
    collected: np.ndarray  # bool (pages,)
    added: int
    seed_recall: float  # share of unseen seed texts that score among the top
    lengths: list[int] = field(default_factory=list)  # characters at the deciles of the collected texts


def mine(
    pool: Pool,
    seed_texts: Sequence[str],
    annotate: Annotate,
    *,
    top: int,
    rounds: int = 4,
    positives: int = 500_000,
    negatives: int = 500_000,
    host_share: float = HOST_SHARE,
    train: Train | None = None,
    seed: int = 0,
) -> Iterator[Round]:
    """Rounds of training, scoring and annotation; ends early when a round adds little.

    Args:
        pool: the pages, deduplicated.
        seed_texts: texts on topic; a tenth is held out to watch for drift.
        annotate: says which prefixes of a candidate host's addresses are on topic.
        top: how many of the best pages count as found by the classifier.
        rounds: at most.
        positives: texts on topic to train on, drawn from the seed and the collected pages (at most 1 % from one host);
            fewer are repeated up to a tenth of this number.
        negatives: pages that are not collected to train against; a few of them are on topic, which does no harm.
        host_share: a host is a candidate when more than this share of its pages is among the top.
        train: makes the scorer; by default `LinearScorer`.
        seed: of every draw.
    """
    if len(seed_texts) < 20:
        raise DataError(f"{len(seed_texts)} seed texts", fix="give 20 or more")
    if not 0 < top <= len(pool.urls):
        raise ConfigError(f"top = {top} of {len(pool.urls)} pages", where="top")
    train = train or (lambda good, bad, s: LinearScorer.train(good, bad, seed=s, name="topic"))
    hosts = np.array([host_of(url) for url in pool.urls])
    names, host, size = np.unique(hosts, return_inverse=True, return_counts=True)
    random = rng(seed, "domain mining")
    shuffled = [seed_texts[i] for i in random.permutation(len(seed_texts))]
    cut_off = max(2, round(HELD_OUT * len(shuffled)))
    watched, known = shuffled[:cut_off], shuffled[cut_off:]
    collected = np.zeros(len(pool.urls), dtype=bool)
    prefixes: list[str] = []
    best_recall = 0.0
    for number in range(1, rounds + 1):
        chosen = _capped(np.flatnonzero(collected), host, max(1, round(HOST_CAP * positives)), positives, random)
        good = [*known, *pool.texts(chosen)][:positives]
        good = good * max(1, round(positives / 10 / len(good)))
        others = np.flatnonzero(~collected)
        bad = pool.texts(np.sort(random.choice(others, min(negatives, len(others)), replace=False)))
        scorer = train(good, bad, seed + number)
        scores = pool.scores(scorer)
        order = np.argsort(-scores, kind="stable")
        near = np.zeros(len(scores), dtype=bool)
        near[order[:top]] = True
        share = np.bincount(host, near | collected) / size
        candidates = {str(names[i]): float(share[i]) for i in np.flatnonzero(share > host_share)}
        best = {str(names[i]): order[host[order] == i][:10] for i in np.flatnonzero(share > host_share)}
        fresh = [p for name in candidates for p in annotate(name, [pool.urls[i] for i in best[name]])]
        prefixes = sorted({*prefixes, *fresh})
        before = int(collected.sum())
        collected = collected | under(pool.urls, prefixes)
        added = int(collected.sum()) - before
        cut = scores[order[top - 1]]
        recall = float(np.mean(np.asarray(scorer.score(watched)) >= cut))
        if recall < best_recall - DRIFT:
            text = "round %d finds %.0f %% of unseen seed texts, an earlier one found %.0f %%: the topic drifts"
            logger("corpus").warning(text, number, 100 * recall, 100 * best_recall)
        best_recall = max(best_recall, recall)
        some = pool.texts(_capped(np.flatnonzero(collected), host, len(collected), 1_000, random))
        lengths = [int(n) for n in np.percentile([len(t) for t in some], np.arange(0, 101, 10))] if some else []
        yield Round(
            number, scorer, scores, order, candidates, prefixes, collected.copy(), added, recall, lengths
        )  # fmt: skip
        if before and added < DONE * before:
            return


def host_of(url: str) -> str:
    """Scheme and host: what the paper calls a domain's base URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def under(urls: Sequence[str], prefixes: Sequence[str]) -> np.ndarray:
    """Whether each address begins with one of the prefixes: bool (urls,)."""
    chosen = tuple(prefixes)
    return np.fromiter((url.startswith(chosen) for url in urls), dtype=bool, count=len(urls)) & bool(chosen)


def _capped(pages: np.ndarray, host: np.ndarray, cap: int, most: int, random: np.random.Generator) -> np.ndarray:
    """A random draw of at most `most` pages, at most `cap` of one host, in order."""
    shuffled = random.permutation(pages)
    by_host = shuffled[np.argsort(host[shuffled], kind="stable")]
    begins = np.flatnonzero(np.diff(host[by_host], prepend=-1))
    rank = np.arange(len(by_host)) - np.repeat(begins, np.diff(begins, append=len(by_host)))
    kept_pages = by_host[rank < cap]
    return np.sort(random.permutation(kept_pages)[:most])


class Decisions:
    """An `Annotate` that asks another one once per host and keeps the answers in a YAML file people can edit."""

    def __init__(self, path: Path | str, ask: Annotate) -> None:
        self._path, self._ask = Path(path), ask
        self._known: dict[str, list[str]] = {}
        if self._path.exists():
            values: Any = yaml.safe_load(self._path.read_text(encoding="utf-8")) or {}
            if not isinstance(values, Mapping) or not all(isinstance(v, list) for v in values.values()):
                raise DataError("expected `host: [prefixes]`", where=self._path)
            self._known = {str(host): [str(prefix) for prefix in found] for host, found in values.items()}

    def __call__(self, host: str, urls: Sequence[str]) -> Sequence[str]:
        """The recorded answer, or that of the other one, which is recorded."""
        if host not in self._known:
            self._known[host] = list(self._ask(host, urls))
            with atomic_file(self._path, "w") as file:
                yaml.safe_dump(self._known, file, sort_keys=True, allow_unicode=True)
        return self._known[host]
