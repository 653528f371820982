"""Craw4LLM: crawl the pages a language model will learn most from, instead of the popular ones.

Two webs. The *generated* one has 60,000 pages of known worth, links that partly follow quality, and popularity that
does not (arXiv 2502.13347 §3): how much of what each order crawls belongs to the best tenth of the whole web, what the
crawl has to fetch for it, and what is left when a page cannot be read before it is crawled (*no look-ahead*: the best
parent's score decides). The *real* one is the documentation of the running Python with its own links; there a model is
trained on what each order crawled, and measured on the documentation of modules that nothing has seen.

In the paper's setting a page is scored from its own text before it is selected, so every page that a selected one links
to is fetched. `fetched` is that number; `selected` alone would hide the cost. The language models are byte 5-gram
models, whose loss depends on what they have read and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from bloomery.core.errors import ConfigError
from bloomery.core.seeds import derive, rng
from bloomery.lab import Claim, Recipe, Run, figures, recipe

if TYPE_CHECKING:
    from bloomery.web.scheduling import Rater
    from bloomery.worlds.web_graph import WebGraph

QUALITY, IN_LINKS, RANDOM, PARENT = "quality", "in-links", "random", "no look-ahead"
ORDERS = (QUALITY, IN_LINKS, RANDOM, PARENT)
READ_ORDERS = (QUALITY, IN_LINKS, RANDOM)  # of the real web
PAPER = "arXiv:2502.13347"
POINTS = 10  # of each learning curve
BEST = 0.1  # the oracle: this share of all pages


@recipe(paper="arXiv:2502.13347", stage="web")
@dataclass(kw_only=True)
class Craw4LLM(Recipe):
    """Crawl by pretraining value instead of link popularity."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"pages": 3_000, "hosts": 100, "per_round": 10, "start": 30, "homophily": [0.8], "trials": 1,
                  "packages": ["email", "asyncio"], "text_pages": 300, "read_round": 4},
        "cpu": {},
        "gpu": {"pages": 2_000_000, "hosts": 50_000, "per_round": 1_000, "start": 5_000, "text_pages": 40_000,
                "packages": [], "read_round": 200},
    }  # fmt: skip

    # --8<-- [start:fields]
    pages: int = 60_000
    """Pages of the generated web."""
    hosts: int = 1_500
    """Its hosts."""
    per_round: int = 100
    """Pages that a round selects there."""
    start: int = 500
    """Random pages that a crawl begins with."""
    share: float = 1 / 45
    """Pages to select, as a share of the web (the paper selects 20 of 900 million)."""
    homophily: list[float] = field(default_factory=lambda: [0.0, 0.4, 0.8])
    """Shares of the links to other hosts that lead to pages of similar quality; the last one is claimed about."""
    packages: list[str] = field(default_factory=lambda: ["stdlib"])
    """Whose documentation the real web shows; empty means everything installed."""
    text_pages: int = 2_000
    """Pages of the real web, at most; those longer than 1,500 characters are served in parts."""
    read_share: float = 0.05
    """Text to select from the real web, as a share of it: pages differ in length, models read the same amount."""
    read_round: int = 20
    """Pages that a round selects there."""
    order: int = 5
    """Bytes of an n-gram of the language models."""
    trials: int = 3
    """Seeds of everything."""
    # --8<-- [end:fields]

    def __post_init__(self) -> None:
        for name in ("pages", "hosts", "per_round", "start", "text_pages", "read_round", "order", "trials"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="1 or more")
        for name in ("share", "read_share"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="a share between 0 and 1")
        if not self.homophily or not all(0 <= h <= 1 for h in self.homophily):
            raise ConfigError(f"homophily is {self.homophily}", fix="shares from 0 to 1")

    def run(self, run: Run) -> Iterator[Claim]:
        """Crawl the generated web in every order, then the real one, and train on what the latter gave."""
        found: dict[float, dict[str, dict[int, Any]]] = {h: {order: {} for order in ORDERS} for h in self.homophily}
        for trial in range(self.trials):
            for h in self.homophily:
                stage = run.stage(f"generated/{h:g}-{trial}")
                for order, result in stage(self.crawl_generated, h, trial).items():
                    found[h][order][trial] = result
        self.show_generated(run, found)
        yield from self.generated_claims(found)

        read: dict[str, dict[int, Any]] = {order: {} for order in READ_ORDERS}
        web = run.stage("web")
        web(self.build, web.folder)
        for trial in range(self.trials):
            for order in READ_ORDERS:
                stage = run.stage(f"real/{order}-{trial}")
                read[order][trial] = stage(self.crawl_real, web.folder, order, trial)
        self.show_real(run, read)
        yield from self.real_claims(read)

    # --- the generated web -------------------------------------------------------------------------------------------

    def crawl_generated(self, homophily: float, trial: int) -> dict[str, Any]:
        """Precision against the best tenth of the web, along the way and at the end; pages fetched for it."""
        import numpy as np

        from bloomery.web.scheduling import Crawl
        from bloomery.worlds.web_graph import web_graph

        web = web_graph(self.pages, self.hosts, homophily, derive(self.seed, "web", trial))
        best = web.oracle(BEST)
        seeds = rng(self.seed, "start", trial).choice(web.pages, self.start, replace=False).tolist()
        results: dict[str, Any] = {}
        for order in ORDERS:
            crawl = Crawl(web, None, [self.rater(web, order, trial)], self.per_round, round(self.share * web.pages))
            crawl.seed(seeds)
            curve = [(i.crawled, float(best[np.array(crawl.crawled)].mean())) for i in crawl.run()]
            selected = np.array(crawl.crawled)
            fetched = len(crawl.visited) if order == QUALITY else len(crawl.crawled)
            results[order] = {
                "curve": curve, "precision": curve[-1][1], "selected": len(crawl.crawled), "fetched": fetched,
                "known": len(crawl.visited), "quality": float(web.quality[selected].mean()),
                "equal": self.equal(web, order, seeds, results),
            }  # fmt: skip
        return results

    def rater(self, web: WebGraph, order: str, trial: int) -> Rater:
        """What decides the order."""
        import numpy as np

        from bloomery.web.scheduling import ParentScore, RandomScore, Table

        score = Table(web.score, "score")
        raters: dict[str, Rater] = {
            QUALITY: score,
            IN_LINKS: Table(np.bincount(web.targets, minlength=web.pages), "in_links"),
            RANDOM: RandomScore(derive(self.seed, "random", trial)),
            PARENT: ParentScore(score),
        }
        return raters[order]

    def equal(self, web: WebGraph, order: str, seeds: Sequence[int], results: Mapping[str, Any]) -> int | None:
        """Pages that a crawl by in-links must fetch until its best ones equal the quality order's in mean quality.

        None where the whole web is not enough; only asked for in-links.
        """
        import numpy as np

        from bloomery.web.scheduling import Crawl

        if order != IN_LINKS:
            return None
        wanted, count = results[QUALITY]["quality"], results[QUALITY]["selected"]
        crawl = Crawl(web, None, [self.rater(web, IN_LINKS, 0)], max(self.pages // 60, 1), self.pages)
        crawl.seed(seeds if len(seeds) >= crawl.per_iteration else range(crawl.per_iteration))
        for _ in crawl.run():
            crawled = np.array(crawl.crawled)
            best = crawled[np.argsort(-web.score[crawled])[:count]]
            if len(best) == count and web.quality[best].mean() >= wanted:
                return len(crawl.crawled)
        return None

    def generated_claims(self, found: Mapping[float, Mapping[str, Mapping[int, Any]]]) -> Iterator[Claim]:
        """Precision is high, that of popularity and chance is not; without look-ahead the gain follows the links."""
        last = found[self.homophily[-1]]
        precision = {order: {t: r["precision"] for t, r in by.items()} for order, by in last.items()}
        trials = range(self.trials)
        fetched = ", ".join(f"{r['fetched']:,}" for r in last[QUALITY].values())
        common: dict[str, Any] = {"paper": PAPER, "better": "higher", "unit": "share of the best tenth"}
        yield Claim(
            statement="Nine of ten pages crawled by quality belong to the best tenth of the web",
            ours=precision[QUALITY],
            baseline=dict.fromkeys(trials, 0.9),
            margin=0.0,
            names=(QUALITY, "0.9"),
            note=f"{last[QUALITY][0]['selected']:,} pages selected, {fetched} fetched to be scored",
            **common,
        )
        rival = {t: max(precision[IN_LINKS][t], precision[RANDOM][t]) for t in trials}
        yield Claim(
            statement="Crawling by in-links or at random finds at most two of ten",
            ours=dict.fromkeys(trials, 0.2),
            baseline=rival,
            margin=0.0,
            names=("0.2", "better of in-links and random"),
            note="the bound must lie above both",
            **common,
        )
        if len(self.homophily) > 1:
            gain = {
                h: {t: found[h][PARENT][t]["precision"] - found[h][RANDOM][t]["precision"] for t in trials}
                for h in self.homophily
            }
            low, high = min(self.homophily), max(self.homophily)
            yield Claim(
                statement="Without look-ahead the gain over random shrinks when links stop following quality",
                ours=gain[high],
                baseline=gain[low],
                margin=0.05,
                names=(f"gain at homophily {high:g}", f"gain at {low:g}"),
                note="the best parent's score decides; links within a host still follow quality at 0",
                **(common | {"paper": "our own: the paper always reads a page before it selects it"}),
            )

    def show_generated(self, run: Run, found: Mapping[float, Mapping[str, Mapping[int, Any]]]) -> None:
        """Precision along the crawl, and every order in numbers."""
        last = found[self.homophily[-1]]
        curves = {order: [_xy(r["curve"]) for r in by.values()] for order, by in last.items()}
        figure = figures.lines(curves, x="pages selected", y="share of the web's best tenth")
        run.figure("precision", figure, f"Generated web, homophily {self.homophily[-1]:g}; the band spans the seeds.")
        rows = []
        for h, by_order in found.items():
            for order, by in by_order.items():
                mean = {key: sum(r[key] for r in by.values()) / len(by) for key in ("selected", "fetched", "known")}
                precision = ", ".join(f"{r['precision']:.3f}" for r in by.values())
                rows.append([h, order, precision, *(f"{mean[k]:,.0f}" for k in ("selected", "fetched", "known"))])
        columns = ["homophily", "order", "precision by seed", "selected", "fetched", "known"]
        run.table("generated", columns, rows, "Known pages are linked to from a selected one, or selected.")
        equal = [r["equal"] for r in last[IN_LINKS].values()]
        text = ", ".join("not reached" if n is None else f"{n:,}" for n in equal)
        quality = ", ".join(f"{r['fetched']:,}" for r in last[QUALITY].values())
        text = f"In-links must fetch {text} pages until the best of them are as good; quality fetched {quality}."
        run.text("equal", text, "Selection after the crawl, by seed.")

    # --- the real web ------------------------------------------------------------------------------------------------

    def build(self, folder: Any) -> dict[str, int]:
        """Render the documentation, extract text and links, train the classifier on half of the modules."""
        from bloomery.recipes._craw4llm_web import build

        return build(folder, self.packages, self.text_pages, self.seed)

    def crawl_real(self, folder: Any, order: str, trial: int) -> dict[str, Any]:
        """Crawl a share of the text and train a model on it: held-out loss, bytes, share of documentation pages."""
        from bloomery.corpus.ngram_lm import NGramModel
        from bloomery.recipes._craw4llm_web import load
        from bloomery.web.scheduling import Crawl, InLinks, Quality, RandomScore

        web, scorer, held_out, kinds = load(folder)
        raters: dict[str, Rater] = {
            QUALITY: Quality(scorer),
            IN_LINKS: InLinks(web),
            RANDOM: RandomScore(derive(self.seed, "random", trial)),
        }
        total = sum(len(text or "") for text in web.text.values())
        pages = sorted(web.text)
        start = rng(self.seed, "real start", trial).choice(len(pages), min(2 * self.read_round, len(pages)), False)
        crawl = Crawl(web, web, [raters[order]], self.read_round, len(pages))
        crawl.seed([pages[i] for i in start])
        size = 0
        for iteration in crawl.run():
            size += sum(len(web.text[page] or "") for page in iteration.pages)
            if size >= self.read_share * total:
                break
        texts = [text for page in crawl.crawled if (text := web.text[page])]
        curve = []
        for part in range(1, POINTS + 1):
            model = NGramModel(texts[: len(texts) * part // POINTS], self.order)
            curve.append((sum(map(len, texts[: len(texts) * part // POINTS])), model.loss(held_out)))
        share = sum(kinds[str(page)] != "source" for page in crawl.crawled) / len(crawl.crawled)
        return {
            "loss": curve[-1][1], "curve": curve,
            "selected": len(crawl.crawled), "fetched": len(crawl.visited) if order == QUALITY else len(crawl.crawled),
            "bytes": curve[-1][0], "documentation": share,
        }  # fmt: skip

    def real_claims(self, read: Mapping[str, Mapping[int, Any]]) -> Iterator[Claim]:
        """What a model learns from each crawl."""
        loss = {order: {t: r["loss"] for t, r in by.items()} for order, by in read.items()}
        for rival in (RANDOM, IN_LINKS):
            yield Claim(
                statement=f"Pages crawled by quality teach more about documentation than those {_phrase(rival)}",
                paper=PAPER,
                ours=loss[QUALITY],
                baseline=loss[rival],
                better="lower",
                margin=0.05,
                unit="nats/byte",
                names=(QUALITY, rival),
                note="the last page may take a crawl over the equal amount of text",
            )

    def show_real(self, run: Run, read: Mapping[str, Mapping[int, Any]]) -> None:
        """Loss of the models, and what each order crawled."""
        curves = {order: [_xy(r["curve"]) for r in by.values()] for order, by in read.items()}
        figure = figures.lines(curves, x="bytes read", y="held-out nats per byte")
        run.figure("loss", figure, "Documentation of unseen modules; one model per order and seed.")
        rows = [
            [
                order,
                trial,
                r["selected"],
                r["fetched"],
                f"{r['documentation']:.0%}",
                f"{r['bytes']:,}",
                f"{r['loss']:.3f}",
            ]
            for order, by in read.items()
            for trial, r in by.items()
        ]
        columns = ["order", "seed", "selected", "fetched", "documentation", "bytes", "loss"]
        run.table("real", columns, rows, "Documentation: share of the selected pages that are not source listings.")


def _phrase(order: str) -> str:
    return {RANDOM: "crawled at random", IN_LINKS: "with the most links to them"}[order]


def _xy(curve: Sequence[tuple[int, float]]) -> tuple[list[float], list[float]]:
    return [float(x) for x, _ in curve], [y for _, y in curve]
