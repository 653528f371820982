"""DCLM-Baseline in miniature: from WARC files of a noisy web to the tenth that is worth training on.

The web has known truth: pages with docstrings of the running Python's standard library, copies of them with a few words
changed, paragraphs that stand on several pages, source listings, lists of links, product pages, word salad. The
pipeline is DCLM's (arXiv 2406.11794): main text, RefinedWeb's filters, Bloom-filter deduplication, the best tenth by a
quality classifier that knows other good texts. A language model reads equally much of what every stage leaves, and of a
random tenth of the raw pages; held out are docstrings of modules that are not part of the web.

Language models are byte 5-gram models: their loss depends on what they have read and nothing else, so differences of a
few hundredths of a nat are visible in seconds. Downstream tasks are left out at this size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bloomery.core.errors import ConfigError
from bloomery.core.seeds import derive, rng
from bloomery.lab import Claim, Recipe, Run, figures, recipe

RAW, FILTERED, DEDUPLICATED, SELECTED, RANDOM = (
    "raw", "filtered", "deduplicated", "selected", "random tenth",
)  # fmt: skip
STAGES = (RAW, FILTERED, DEDUPLICATED, SELECTED)
ARMS = (*STAGES, RANDOM)
PAPER = "arXiv:2406.11794"
MIN_WORDS, LINES = 60, 40  # of a good text; of a source listing
TEACHING, HELD_OUT = 0.3, 0.15  # of the modules: what the classifier learns from, what models are measured on
PARAGRAPH = 13  # tokens of a paragraph that deduplication looks at


@recipe(paper="arXiv:2406.11794", stage="curate")
@dataclass(kw_only=True)
class DCLM(Recipe):
    """Filter, deduplicate and select a noisy web as DCLM-Baseline does."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"packages": ("email", "asyncio", "unittest", "logging"), "pages": 300, "files": 2, "trials": 1,
                  "budget": 20_000, "keep": 0.3},
        "cpu": {},
        "gpu": {"packages": (), "pages": 200_000, "files": 64, "budget": 20_000_000},
    }  # fmt: skip

    # --8<-- [start:fields]
    packages: tuple[str, ...] = ("stdlib", "numpy", "torch")
    """Whose documentation the good pages carry; empty means everything installed."""
    pages: int = 8_000
    """Pages of the web."""
    files: int = 4
    """WARC files they lie in."""
    keep: float = 0.3
    """Share of what is left after deduplication that the classifier keeps."""
    budget: int = 400_000
    """Bytes that each language model reads."""
    order: int = 5
    """Bytes of an n-gram of the language models."""
    trials: int = 3
    """Seeds of everything."""
    # --8<-- [end:fields]

    def __post_init__(self) -> None:
        for name in ("pages", "files", "budget", "order", "trials"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="1 or more")
        if not 0 < self.keep < 1:
            raise ConfigError(f"keep is {self.keep}", fix="a share between 0 and 1")

    def run(self, run: Run) -> Iterator[Claim]:
        """Build the web, curate it, train on what every stage leaves."""
        found: dict[int, Any] = {}
        for trial in range(self.trials):
            web, stage = run.stage(f"web/{trial}"), run.stage(f"curate/{trial}")
            web(self.build, web.folder, trial)
            found[trial] = stage(self.curate, web.folder, stage.folder, trial, run.quiet)
        self.show(run, found)
        yield from self.claims(found)

    # --- the web -----------------------------------------------------------------------------------------------------

    def build(self, folder: Path, trial: int) -> dict[str, int]:
        """Write the WARC files, the truth, and the texts of the classifier and of the test."""
        from bloomery.core.files import write_json
        from bloomery.corpus.split import split_of
        from bloomery.web import WarcWriter
        from bloomery.worlds.installed_docs import InstalledDocs
        from bloomery.worlds.noisy_pages import noisy_pages
        from bloomery.worlds.stdlib_source import source_files

        texts: dict[str, list[str]] = {"web": [], "teaching": [], "held_out": []}
        for _, module, text in InstalledDocs(list(self.packages) or None).docstrings():
            if len(text.split()) < MIN_WORDS:
                continue
            unseen = split_of(module, self.seed + 1, HELD_OUT) == "validation"
            teaching = split_of(module, self.seed, TEACHING) == "validation"
            texts["held_out" if unseen else "teaching" if teaching else "web"].append(text)
        lines = (file.text.splitlines() for file in source_files())
        listings = ["\n".join(code[i : i + LINES]) for code in lines for i in range(0, len(code), LINES)]
        pages = noisy_pages(texts["web"], listings, self.pages, derive(self.seed, "web", trial) % 2**31)
        for number in range(self.files):
            writer = WarcWriter(folder, f"pages-{number}", "bloomery")
            for page in pages[number :: self.files]:
                headers = [("Content-Type", "text/html; charset=utf-8")]
                writer.write_page(page.url, 200, "OK", headers, page.html.encode(), {}, seconds=1e9)
            writer.close()
        write_json(folder / "truth.json", {page.url: page.kind for page in pages})
        write_json(folder / "texts.json", {name: texts[name] for name in ("teaching", "held_out")})
        return {kind: sum(page.kind == kind for page in pages) for kind in sorted({page.kind for page in pages})}

    # --- curation ----------------------------------------------------------------------------------------------------

    def curate(self, web: Path, folder: Path, trial: int, quiet: bool) -> dict[str, Any]:
        """Run the pipeline stage by stage; survivors, duplicates, classifier and models."""
        from bloomery.core.files import read_json
        from bloomery.corpus import LinearScorer
        from bloomery.corpus.bloom_dedup import bloom_dedup
        from bloomery.corpus.ngram_lm import NGramModel
        from bloomery.corpus.quality import Score
        from bloomery.corpus.refinedweb.presets import refinedweb
        from bloomery.corpus.selection import Select
        from bloomery.metrics.classification import auc

        truth, texts = read_json(web / "truth.json"), read_json(web / "texts.json")
        warcs = sorted(web.glob("*.warc.gz"))
        corpora: dict[str, dict[str, str]] = {RAW: self.leaves([], warcs, folder / RAW, quiet)}
        corpora[FILTERED] = self.leaves(refinedweb(), warcs, folder / FILTERED, quiet)
        corpora[DEDUPLICATED] = self.leaves(bloom_dedup(), folder / FILTERED, folder / DEDUPLICATED, quiet)
        raw, random = list(corpora[RAW].values()), rng(self.seed, "negatives", trial)
        negatives = [raw[i] for i in random.permutation(len(raw))[: 2 * len(texts["teaching"])]]
        scorer = LinearScorer.train(texts["teaching"], negatives, seed=trial)
        steps = [Score(scorer), Select(f"score_{scorer.name}", fraction=self.keep)]
        corpora[SELECTED] = self.leaves(steps, folder / DEDUPLICATED, folder / SELECTED, quiet)
        urls = sorted(corpora[RAW])
        corpora[RANDOM] = {urls[i]: corpora[RAW][urls[i]] for i in random.permutation(len(urls))[: len(urls) // 10]}

        left, good = corpora[DEDUPLICATED], [truth[url] in ("good", "copy") for url in corpora[DEDUPLICATED]]
        perplexity = NGramModel(texts["teaching"], self.order)
        losses = {}
        for arm in ARMS:
            order = rng(self.seed, "reading", trial, arm).permutation(len(corpora[arm]))
            read = list(corpora[arm].values())
            content = "\n".join(read[i] for i in order).encode()
            while len(content) < self.budget:  # a small selection is read again
                content += b"\n" + content
            losses[arm] = NGramModel([content[: self.budget]], self.order).loss(texts["held_out"])
        return {
            "survivors": {arm: len(corpora[arm]) for arm in ARMS},
            "good": {arm: sum(truth[url] in ("good", "copy") for url in corpora[arm]) for arm in ARMS},
            "losses": losses,
            "duplicates": duplicates(corpora[FILTERED], left),
            "auc": {
                "classifier": auc(good, scorer.score(list(left.values()))),
                "perplexity": auc(good, perplexity.score(list(left.values()))),
            },
        }  # fmt: skip

    def leaves(self, steps: list[Any], inputs: Any, output: Path, quiet: bool) -> dict[str, str]:
        """Run steps over files; the text by address of what is left, in input order."""
        from bloomery import corpus
        from bloomery.web import read_documents

        corpus.run(steps, inputs, output, read=read_documents, quiet=quiet)
        found: dict[str, str] = {}
        for path in sorted(output.glob("*.parquet")):
            for batch in corpus.read_documents(path):
                found.update(zip(batch.column("url").to_pylist(), corpus.texts(batch).to_pylist(), strict=True))
        return found

    # --- claims ------------------------------------------------------------------------------------------------------

    def claims(self, found: Mapping[int, Any]) -> Iterator[Claim]:
        """Deduplication is thorough and careful, selection pays, and the classifier beats perplexity."""
        loss = {arm: {t: r["losses"][arm] for t, r in found.items()} for arm in ARMS}
        removed = {t: r["duplicates"]["removed"] for t, r in found.items()}
        lost = {t: r["duplicates"]["lost"] for t, r in found.items()}
        yield Claim(
            statement="Bloom-filter deduplication removes 95 % of the repeated paragraphs",
            paper=PAPER,
            ours=removed,
            baseline=dict.fromkeys(found, 0.95),
            better="higher",
            margin=0.0,
            unit="share of repeated paragraphs",
            names=("removed", "0.95"),
            note=f"paragraphs of {PARAGRAPH} words or more that have stood on an earlier page",
        )
        yield Claim(
            statement="… and at most 1 % of those that are not repeated",
            paper=PAPER,
            ours=lost,
            baseline=dict.fromkeys(found, 0.01),
            better="lower",
            margin=0.0,
            unit="share of new paragraphs",
            names=("lost", "0.01"),
            note="on pages that are not copies of others as a whole",
        )
        for arm, margin in ((RAW, 0.1), (RANDOM, 0.1)):
            yield Claim(
                statement=f"At equal reading, the selected pages teach more than {_phrase(arm)}",
                paper=PAPER,
                ours=loss[SELECTED],
                baseline=loss[arm],
                better="lower",
                margin=margin,
                unit="nats/byte of held-out docstrings",
                names=(SELECTED, arm),
                note=f"{self.budget:,} bytes each",
            )
        yield Claim(
            statement="The classifier tells good pages from bad better than perplexity does",
            paper=PAPER,
            ours={t: r["auc"]["classifier"] for t, r in found.items()},
            baseline={t: r["auc"]["perplexity"] for t, r in found.items()},
            better="higher",
            margin=0.0,
            unit="AUC after deduplication",
            names=("classifier", "perplexity"),
            note="both know the same good texts",
        )

    def show(self, run: Run, found: Mapping[int, Any]) -> None:
        """Survivors, loss by stage, and the numbers."""
        first = found[0]["survivors"]
        caption = "Pages left after each stage, first seed."
        run.figure("survival", figures.survival([(stage, first[stage]) for stage in STAGES], unit="pages"), caption)
        losses = {arm: {t: r["losses"][arm] for t, r in found.items()} for arm in ARMS}
        caption = "Held-out docstrings; every model reads the same amount of what the stage leaves."
        run.figure("losses", figures.bars(losses, y="nats per byte", zero=False), caption)
        rows = []
        for arm in ARMS:
            left, good = (", ".join(f"{r[key][arm]:,}" for r in found.values()) for key in ("survivors", "good"))
            rows.append([arm, left, good, ", ".join(f"{r['losses'][arm]:.3f}" for r in found.values())])
        run.table(
            "stages", ["stage", "pages by seed", "good ones", "held-out loss"], rows, "Good: documentation or a copy."
        )
        rows = [
            [str(t), f"{r['duplicates']['repeated']:,}", f"{r['duplicates']['removed']:.3f}",
             f"{r['duplicates']['lost']:.4f}", f"{r['auc']['classifier']:.4f}", f"{r['auc']['perplexity']:.4f}"]
            for t, r in found.items()
        ]  # fmt: skip
        columns = ["seed", "repeated paragraphs", "removed", "new ones lost", "AUC classifier", "AUC perplexity"]
        run.table("checks", columns, rows, "")


def duplicates(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, float]:
    """Share of repeated paragraphs that are gone, and of new ones.

    A paragraph of 13 words or more is repeated if all its 13-grams of words have stood on earlier pages, and new if
    none has; others are left out of both counts, and so are new ones on a page that is a copy of others (more than 80 %
    of all its 13-grams), which is meant to go as a whole.
    """
    seen: set[tuple[str, ...]] = set()
    counts = {"repeated": 0, "removed": 0, "new": 0, "lost": 0}
    for url, text in before.items():
        left = set(after.get(url, "").split("\n"))
        rows = []
        for line in text.split("\n"):
            words = line.split()
            grams = [tuple(words[i : i + PARAGRAPH]) for i in range(len(words) - PARAGRAPH + 1)]
            if grams:
                rows.append((sum(gram in seen for gram in grams), len(grams), line not in left))
                seen.update(grams)
        is_copy = sum(row[0] for row in rows) > 0.8 * sum(row[1] for row in rows)
        for known, total, gone in rows:
            if known == total:
                counts["repeated"] += 1
                counts["removed"] += gone
            elif not known and not is_copy:
                counts["new"] += 1
                counts["lost"] += gone
    return {
        "repeated": counts["repeated"],
        "removed": counts["removed"] / max(1, counts["repeated"]),
        "lost": counts["lost"] / max(1, counts["new"]),
    }


def _phrase(arm: str) -> str:
    return {RAW: "the raw crawl", RANDOM: "a random tenth of it"}[arm]
