"""Mining a domain from the web: sixty pages of one module grow into the whole topic, as DeepSeekMath grew its corpus.

The pool is the source of the running Python's standard library in pieces of 25 lines, put on 400 made-up hosts. The
topic are numbers and time (`datetime`, `statistics`, `fractions`, …): a twentieth of the pieces, nearly all of them
on 40 of the hosts, among a few strays. The seed are pieces of `datetime` alone. Each round trains a classifier, scores
the pool, looks which hosts have many pages near the top, asks a reviewer who is right nine times in ten, and adds their
pages (arXiv 2402.03300, §2.1).

Beside it, *self-training* adds the top-scored pages themselves, without the step over the hosts.

R-precision is the share of topic pages among as many of the best-scored pages as there are topic pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bloomery.core.errors import ConfigError
from bloomery.core.seeds import derive, rng
from bloomery.lab import Claim, Recipe, Run, figures, recipe

if TYPE_CHECKING:
    import numpy as np

    from bloomery.corpus.domain_mining import MemoryPool

MINING, SELF_TRAINING = "hosts", "self-training"
ARMS = (MINING, SELF_TRAINING)
TOPIC = {
    "_strptime", "calendar", "colorsys", "datetime", "fractions", "heapq", "bisect", "numbers", "random",
    "statistics", "zoneinfo", "ipaddress", "sched", "timeit",
}  # fmt: skip
SEED_MODULE = "datetime"
LINES, TOPIC_HOSTS, STRAYS = 25, 0.1, 0.03


@recipe(paper="arXiv:2402.03300", stage="curate")
@dataclass(kw_only=True)
class DomainMining(Recipe):
    """Grow a domain corpus from a small seed, host by host."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"pieces": 900, "hosts": 60, "rounds": 2, "trials": 1, "negatives": 400, "positives": 4_000},
        "cpu": {},
        "gpu": {"pieces": 100_000, "rounds": 6, "positives": 300_000, "negatives": 60_000},
    }  # fmt: skip

    # --8<-- [start:fields]
    pieces: int = 12_000
    """Pieces of source in the pool, at most."""
    hosts: int = 400
    """Hosts they are put on."""
    seeds: int = 60
    """Pieces of the seed."""
    rounds: int = 4
    """Rounds of mining."""
    positives: int = 20_000
    """Positives to train on (fewer are repeated up to a tenth of it)."""
    negatives: int = 4_000
    """Random pages to train against."""
    accuracy: float = 0.9
    """How often the reviewer of a host is right."""
    trials: int = 3
    """Seeds of everything."""
    # --8<-- [end:fields]

    def __post_init__(self) -> None:
        for name in ("pieces", "hosts", "rounds", "positives", "negatives", "trials"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="1 or more")
        if self.seeds < 20:
            raise ConfigError(f"seeds is {self.seeds}", fix="20 or more")
        if not 0.5 <= self.accuracy <= 1:
            raise ConfigError(f"accuracy is {self.accuracy}", fix="0.5 to 1")

    def run(self, run: Run) -> Iterator[Claim]:
        """Mine with and without the hosts, seed by seed."""
        found: dict[str, dict[int, Any]] = {arm: {} for arm in ARMS}
        for trial in range(self.trials):
            for arm in ARMS:
                found[arm][trial] = run.stage(f"{arm}-{trial}")(self.mine, arm, trial)
        self.show(run, found)
        precision = {arm: {t: r["precision"] for t, r in by.items()} for arm, by in found.items()}
        yield Claim(
            statement="The second round, which has seen whole hosts, finds a quarter more of the topic than the first",
            paper="arXiv:2402.03300",
            ours={t: p[1] if len(p) > 1 else p[0] for t, p in precision[MINING].items()},
            baseline={t: p[0] for t, p in precision[MINING].items()},
            better="higher",
            margin=0.25,
            unit="R-precision",
            names=("round 2", "round 1"),
            note=f"seed: {self.seeds} pieces of one module; the reviewer is right {self.accuracy:.0%} of the time",
        )
        yield Claim(
            statement="Adding whole hosts finds more than adding the top-scored pages themselves",
            paper="our own: the paper gives no ablation of the step",
            ours={t: p[-1] for t, p in precision[MINING].items()},
            baseline={t: p[-1] for t, p in precision[SELF_TRAINING].items()},
            better="higher",
            margin=0.1,
            unit="R-precision",
            names=(MINING, SELF_TRAINING),
            note=f"after {self.rounds} rounds",
        )

    def mine(self, arm: str, trial: int) -> dict[str, Any]:
        """R-precision of every round, recall on unseen seed texts, and what was collected."""
        import numpy as np

        from bloomery.corpus.domain_mining import host_of, mine

        pool, seeds, topic, good_hosts = self.pool(trial)
        wanted = int(topic.sum())
        reviewer = rng(self.seed, "reviewer", trial)

        def annotate(host: str, urls: Sequence[str]) -> Sequence[str]:
            right = reviewer.random() < self.accuracy
            return [f"{host}/"] if (host in good_hosts) == right else []

        hosts = np.array([host_of(url) for url in pool.urls])
        options: dict[str, Any] = {"top": max(1, wanted // 2), "rounds": self.rounds, "negatives": self.negatives}
        options |= {"positives": self.positives, "seed": derive(self.seed, "mining", trial) % 2**31}
        if arm == SELF_TRAINING:
            rounds = self.self_training(pool, seeds, **options)
        else:
            rounds = list(mine(pool, seeds, annotate, **options))
        precision = [float(topic[r.order[:wanted]].mean()) for r in rounds]
        last = rounds[-1].collected
        return {
            "precision": precision, "seed_recall": [r.seed_recall for r in rounds], "topic": wanted,
            "pages": len(pool.urls), "collected": int(last.sum()),
            "purity": float(topic[last].mean()) if last.any() else 0.0,
            "hosts": len({*hosts[last]}), "candidates": [len(r.candidates) for r in rounds],
        }  # fmt: skip

    def self_training(self, pool: MemoryPool, seeds: Sequence[str], **options: Any) -> list[Any]:
        """The same loop where the pages near the top join the seed, whatever their host."""
        from bloomery.corpus.domain_mining import MemoryPool, mine

        alone = MemoryPool([f"page://{i}/" for i in range(len(pool.urls))], pool.content)
        return list(mine(alone, seeds, lambda host, urls: [f"{host}/"], **options))

    def pool(self, trial: int) -> tuple[MemoryPool, list[str], np.ndarray, set[str]]:
        """The pages, the seed texts, which pages are on topic, and the hosts that are."""
        import numpy as np

        from bloomery.corpus.domain_mining import MemoryPool
        from bloomery.worlds.stdlib_source import source_files

        random = rng(self.seed, "pool", trial)
        pieces: dict[str, list[str]] = {}
        for file in source_files():
            lines = file.text.splitlines()
            cut = ["\n".join(lines[i : i + LINES]) for i in range(0, len(lines), LINES)]
            pieces.setdefault(file.module, []).extend(piece for piece in cut if len(piece) > 200)
        seed_pieces = [pieces[SEED_MODULE][i] for i in random.permutation(len(pieces[SEED_MODULE]))[: self.seeds]]
        left_out = set(seed_pieces)
        on = [p for module in sorted(TOPIC & pieces.keys()) for p in pieces[module] if p not in left_out]
        off = [p for module in sorted(pieces.keys() - TOPIC) for p in pieces[module]]
        share = self.pieces / (len(on) + len(off))
        if share < 1:
            on = [on[i] for i in sorted(random.permutation(len(on))[: round(share * len(on))])]
            off = [off[i] for i in sorted(random.permutation(len(off))[: self.pieces - len(on)])]
        n_good = max(1, round(TOPIC_HOSTS * self.hosts))
        # Topic pages live on topic hosts and a few elsewhere; other pages stray onto topic hosts.
        host_on = np.where(random.random(len(on)) < STRAYS, random.integers(n_good, self.hosts, len(on)),
                           random.integers(n_good, size=len(on)))  # fmt: skip
        host_off = np.where(random.random(len(off)) < STRAYS, random.integers(n_good, size=len(off)),
                            random.integers(n_good, self.hosts, len(off)))  # fmt: skip
        host, topic = np.concatenate([host_on, host_off]), np.repeat([True, False], [len(on), len(off)])
        names = [f"https://host{i:03d}.example" for i in random.permutation(self.hosts)]
        urls = [f"{names[h]}/{i}" for i, h in enumerate(host)]
        return MemoryPool(urls, [*on, *off]), seed_pieces, topic, set(names[:n_good])

    def show(self, run: Run, found: Mapping[str, Mapping[int, Any]]) -> None:
        """R-precision by round, and what each arm collected."""
        curves = {
            arm: [([float(i + 1) for i in range(len(r["precision"]))], r["precision"]) for r in by.values()]
            for arm, by in found.items()
        }
        figure = figures.lines(curves, x="round", y="R-precision", title="")
        run.figure("precision", figure, "Share of topic pages among the best-scored; the band spans the seeds.")
        rows = []
        for arm, by in found.items():
            for trial, r in by.items():
                precision, recall = (", ".join(f"{v:.3f}" for v in r[key]) for key in ("precision", "seed_recall"))
                rows.append([arm, trial, precision, recall, r["collected"], f"{r['purity']:.0%}", r["hosts"]])
        columns = ["arm", "seed", "R-precision by round", "seed recall by round", "collected", "on topic", "hosts"]
        run.table("rounds", columns, rows, "Seed recall: unseen seed texts that score among the top.")
