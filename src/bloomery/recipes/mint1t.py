"""MINT-1T in miniature: documents of text and images in the order of the page, out of HTML, PDF and LaTeX.

Four experiments on generated documents whose order is known:

- *pages*: a web of illustrated articles with navigation, repeated lines, logos, icons, banners and copies goes through
  the steps of `bloomery curate --recipe mint1t` (arXiv 2406.11271, §3.1.1): what of the articles is left, and in which
  order; beside it the same steps after OBELICS' own reading of HTML (arXiv 2306.16527), and the same documents as texts
  first and images after them;
- *pdf*: pages of one to three columns with figures (§3.1.2), beside reading them from the top down;
- *latex*: source trees (§3.1.3), beside reading their files one after the other;
- *order*: a small language model reads the curated documents, or the same with their parts in random order, and is
  asked for the word that follows an image.

Left out: classifiers for language and unsafe images, which are files that no generated page needs; image encoders; and
the paper's captioning and question answering, which need models a thousand times larger.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from bloomery.core.errors import ConfigError
from bloomery.core.seeds import derive, generator, rng
from bloomery.lab import Claim, Recipe, Run, recipe

if TYPE_CHECKING:
    from bloomery.recipes._mint1t_truth import Document
    from bloomery.web.documents import Reading
    from bloomery.worlds.interleaved_pages import IllustratedWeb

PAPER = "arXiv:2406.11271"
CURATED, OBELICS, BAG, DEALT = "curated", "OBELICS' reading", "texts, then images", "images dealt out"
OURS, TOP_DOWN = "our reading", "top down"
INTERLEAVED, SHUFFLED = "interleaved", "shuffled"
ONE_COLUMN = "one column"


@recipe(paper="arXiv:2406.11271", stage="curate")
@dataclass(kw_only=True)
class Mint1T(Recipe):
    """Interleave text and images of HTML, PDF and LaTeX as MINT-1T does, and see what the order is worth."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"pages": 60, "files": 1, "papers": 3, "trials": 1, "tokens": 10_000, "tests": 10},
        "cpu": {},
        "gpu": {"pages": 20_000, "files": 32, "papers": 500, "tokens": 50_000_000, "dim": 512, "layers": 8,
                "batch_size": 64, "rate": 1e-3, "tests": 1_000},
    }  # fmt: skip

    # --8<-- [start:fields]
    pages: int = 500
    """Pages of the generated web, copies included."""
    files: int = 2
    """WARC files they lie in."""
    papers: int = 20
    """Generated LaTeX papers; PDFs are one of each of seven layouts."""
    tokens: int = 300_000
    """Training tokens of each language model."""
    dim: int = 64
    """Width of the language models, a multiple of 32."""
    layers: int = 2
    """Blocks of the language models."""
    seq_len: int = 256
    """Tokens in a training sequence."""
    batch_size: int = 4
    """Sequences in an optimiser step."""
    rate: float = 1e-2
    """Peak learning rate."""
    tests: int = 100
    """Pages of another generated web that the language models are tested on."""
    trials: int = 3
    """Seeds of everything."""
    real: str = ""
    """A folder of real papers and pages to measure as well (tables, no claims): see `recipes/_mint1t_real.py`."""
    # --8<-- [end:fields]

    def __post_init__(self) -> None:
        for name in ("pages", "files", "papers", "tokens", "layers", "seq_len", "batch_size", "tests", "trials"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="1 or more")
        if self.dim < 32 or self.dim % 32:
            raise ConfigError(f"dim is {self.dim}", fix="a multiple of 32")
        if not self.rate > 0:
            raise ConfigError(f"rate is {self.rate}", fix="above 0")
        if self.real and not Path(self.real).is_dir():
            raise ConfigError(f"no folder {self.real!r}", where="real", fix="leave it empty: nothing else needs it")

    def run(self, run: Run) -> Iterator[Claim]:
        """Every experiment is one stage a seed."""
        pages, pdf, latex, order = ({trial: dict[str, Any]() for trial in range(self.trials)} for _ in range(4))
        for trial in range(self.trials):
            web, stage = run.stage(f"web/{trial}"), run.stage(f"pages/{trial}")
            web(self.build, web.folder, trial)
            pages[trial] = stage(self.curate, web.folder, stage.folder, trial, run.quiet)
            pdf[trial] = run.stage(f"pdf/{trial}")(self.read_pdfs, trial)
            latex[trial] = run.stage(f"latex/{trial}")(self.read_papers, trial)
            order[trial] = run.stage(f"order/{trial}")(self.learn, stage.folder / CURATED, trial)
        real = run.stage("real")(self.read_real) if self.real else {}
        self.show(run, pages, pdf, order, real)
        yield from self.page_claims(pages)
        yield from self.paper_claims(pdf, latex)
        yield self.order_claim(order)

    # --- pages -------------------------------------------------------------------------------------------------------

    def web(self, trial: int) -> IllustratedWeb:
        """The generated web of a seed, with its truth."""
        from bloomery.worlds.interleaved_pages import illustrated_web

        return illustrated_web(self.pages, derive(self.seed, "web", trial))

    def build(self, folder: Path, trial: int) -> int:
        """Write the WARC files."""
        from bloomery.web import WarcWriter

        pages = self.web(trial).pages
        for number in range(self.files):
            writer = WarcWriter(folder, f"pages-{number}", "bloomery")
            for page in pages[number :: self.files]:
                headers = [("Content-Type", "text/html; charset=utf-8")]
                writer.write_page(page.url, 200, "OK", headers, page.html.encode(), {}, seconds=1e9)
            writer.close()
        return len(pages)

    def curate(self, warcs: Path, folder: Path, trial: int, quiet: bool) -> dict[str, Any]:
        """Run the pipeline on our reading and on OBELICS'; what is left of the articles, and in which order."""
        from bloomery import corpus
        from bloomery.recipes._mint1t_truth import judge
        from bloomery.web import read_documents

        web, found = self.web(trial), dict[str, Any]()
        readings: tuple[tuple[str, Reading], ...] = ((CURATED, "interleaved"), (OBELICS, "obelics"))
        for arm, mode in readings:
            read = partial(read_documents, extract=mode)
            report = corpus.run(self.steps(web), sorted(warcs.glob("*.warc.gz")), folder / arm, read=read, quiet=quiet)
            left = dict(documents(folder / arm))
            found[arm] = judge(web, left, derive(self.seed, "judge", trial))
            found[arm]["steps"] = [[step.name, step.kept] for step in report.steps]
        return found

    def steps(self, web: IllustratedWeb) -> list[Any]:
        """The preset, with images compared by SHA-256 alone, as in the paper: drawn shapes all look alike."""
        from bloomery.corpus.interleaved.images import GivenImages
        from bloomery.corpus.presets import preset

        return preset("mint1t", images=GivenImages(web.images), distance=None)

    def page_claims(self, found: Mapping[int, Any]) -> Iterator[Claim]:
        """The order is kept, what does not belong to the articles is gone, and little that does."""

        def values(key: str, arm: str = CURATED, of: str | None = None) -> dict[int, float]:
            return {t: r[arm][key][of] if of else r[arm][key] for t, r in found.items()}

        def bound(value: float) -> dict[int, float]:
            return dict.fromkeys(found, value)

        order = values("lcs", of=CURATED)
        common: dict[str, Any] = {"paper": PAPER, "better": "higher", "margin": 0.0}
        pages = f"{found[0][CURATED]['pages']:,} articles; one that is lost counts as 0"
        yield Claim(
            statement="99 % of an article is left, in the order of the page",
            ours=order,
            baseline=bound(0.99),
            unit="longest common subsequence / article",
            names=(CURATED, "0.99"),
            note=pages,
            **common,
        )
        yield Claim(
            statement="… which OBELICS' own reading cannot keep: it loses figures, pictures and lists",
            ours=order,
            baseline=values("lcs", OBELICS, CURATED),
            unit="longest common subsequence / article",
            names=("our reading", OBELICS),
            note="the same steps after both",
            **common | {"margin": 0.1},
        )
        yield Claim(
            statement="An image stands before its paragraph; dealt out over the places of images, one in as many does",
            ours=values("adjacent", of=CURATED),
            baseline=values("adjacent", of=DEALT),
            unit="share of images directly followed by their paragraph",
            names=(CURATED, DEALT),
            note="three to five images a page; texts first and images after them keep none together",
            **common | {"margin": 0.5},
        )
        yield Claim(
            statement="95 % of the lines that repeat on every page are gone",
            ours=values("lines_removed"),
            baseline=bound(0.95),
            unit="share of planted lines",
            names=("removed", "0.95"),
            note="deduplication keeps the first of every host",
            **common,
        )
        yield Claim(
            statement="Every icon, banner and logo is gone",
            ours=values("bad_removed"),
            baseline=bound(0.999),
            unit="share of planted images",
            names=("removed", "0.999"),
            note=", ".join(f"{n:,}" for n in values("bad").values())
            + " planted images on pages that are left, by seed",
            **common,
        )
        yield Claim(
            statement="… and at most 1 % of the articles' own images",
            ours=values("good_lost"),
            baseline=bound(0.01),
            unit="share of the articles' images",
            names=("lost", "0.01"),
            note=", ".join(f"{n:,}" for n in values("good").values()) + " images, by seed",
            **common | {"better": "lower"},
        )
        yield Claim(
            statement="Copies of pages are gone",
            ours=values("copies_removed"),
            baseline=bound(0.99),
            unit="share of copies",
            names=("removed", "0.99"),
            note=", ".join(f"{n:,}" for n in values("copies").values()) + " copies, by seed",
            **common,
        )

    # --- papers ------------------------------------------------------------------------------------------------------

    def read_pdfs(self, trial: int) -> dict[str, dict[str, float]]:
        """Kendall's tau of our reading, and of reading from the top down, with the true order, by layout."""
        from bloomery.metrics.order import kendall_tau
        from bloomery.recipes._mint1t_real import top_down
        from bloomery.web.interleave.pdf import PdfReader
        from bloomery.web.interleave.pdf_layout import reading_order
        from bloomery.worlds.interleaved_pages import COLOURS, SHAPES, shape_image
        from bloomery.worlds.pdf_pages import known_pdfs

        random, size = rng(self.seed, "pictures", trial), 200
        shapes = zip(SHAPES, COLOURS, strict=False)
        pictures = [shape_image(*names, size + i, 160, random) for i, names in enumerate(shapes)]
        taus: dict[str, dict[str, float]] = {OURS: {}, TOP_DOWN: {}}
        with PdfReader() as reader:
            for known in known_pdfs(pictures, derive(self.seed, "pdfs", trial)):
                for arm, order in ((OURS, reading_order), (TOP_DOWN, top_down)):
                    parts = reader.read(known.data, known.name, order=order)
                    found = [p.meta["width"] - size if p.text is None else p.text for p in parts]  # pictures by width
                    taus[arm][known.name] = kendall_tau(known.ranks(found))
        return taus

    def read_papers(self, trial: int) -> dict[str, float]:
        """Share of the LaTeX papers read in exactly their order; mean Kendall's tau of ours, and of files by name."""
        from bloomery.metrics.order import kendall_tau
        from bloomery.recipes._mint1t_real import one_file
        from bloomery.web.interleave.latex import read_latex
        from bloomery.web.interleave.latex_source import Tree
        from bloomery.worlds.latex_papers import known_papers

        found: dict[str, list[float]] = {"exact": [], "ours": [], "by name": []}
        for paper in known_papers(self.papers, derive(self.seed, "papers", trial)):
            truth = [_bare(*item) for item in paper.order]
            for arm, files in (("ours", paper.files), ("by name", one_file(paper.files))):
                parts = read_latex(Tree(list(files), files=files))
                read = [_bare("image", p.ref or "") if p.text is None else _bare("text", p.text) for p in parts]
                places = {item: place for place, item in enumerate(read)}
                found[arm].append(kendall_tau([places.get(item, len(read)) for item in truth]))
                if arm == "ours":
                    found["exact"].append(read == truth)
        return {arm: fmean(values) for arm, values in found.items()}

    def read_real(self) -> dict[str, list[list[Any]]]:
        """Rows of tables; see `_mint1t_real`."""
        from bloomery.recipes._mint1t_real import pages, papers, pdfs
        from bloomery.web.interleave.pdf import PdfReader

        root, found = Path(self.real), dict[str, list[list[Any]]]()
        with PdfReader() as reader:
            for name, rows in (("latex", partial(papers, reader=reader)), ("pdf", partial(pdfs, reader=reader)),
                               ("web_pages", pages)):  # fmt: skip
                if (root / name).is_dir():
                    found[name] = list(rows(root / name))
        return found

    def paper_claims(self, pdf: Mapping[int, Any], latex: Mapping[int, Any]) -> Iterator[Claim]:
        """Columns are read one after the other, and files where they are included."""

        def columns(arm: str) -> dict[int, float]:
            return {t: fmean(tau for name, tau in r[arm].items() if name != ONE_COLUMN) for t, r in pdf.items()}

        common: dict[str, Any] = {"paper": PAPER, "better": "higher"}
        note = "mean over six layouts: two and three columns, papers, figures, footnotes, both"
        yield Claim(
            statement="PDF pages with columns are read in order",
            ours=columns(OURS),
            baseline=dict.fromkeys(pdf, 0.95),
            margin=0.0,
            unit="Kendall's tau",
            names=(OURS, "0.95"),
            note=note,
            **common,
        )
        yield Claim(
            statement="… and not from the top down",
            ours=columns(OURS),
            baseline=columns(TOP_DOWN),
            margin=0.2,
            unit="Kendall's tau",
            names=(OURS, TOP_DOWN),
            note=note,
            **common,
        )
        exact = ", ".join(f"{r['exact']:.1%}" for r in latex.values())
        yield Claim(
            statement="LaTeX papers of many files are read in order",
            ours={t: r["ours"] for t, r in latex.items()},
            baseline={t: r["by name"] for t, r in latex.items()},
            margin=0.2,
            unit="Kendall's tau",
            names=(OURS, "files by name"),
            note=f"papers equal to their truth, part by part: {exact} of {self.papers}, by seed",
            **common,
        )

    # --- what order is worth -----------------------------------------------------------------------------------------

    def learn(self, curated: Path, trial: int) -> dict[str, dict[str, Any]]:
        """Train on curated documents as they are and shuffled; how often each names the shape after an image."""
        from bloomery.core.devices import pick_device
        from bloomery.corpus.interleaved import Part
        from bloomery.models import Decoder
        from bloomery.recipes import _mint1t_model as task
        from bloomery.recipes._looped_tasks import decoder
        from bloomery.train import Phase, TrainConfig
        from bloomery.worlds.interleaved_pages import illustrated_web

        kept = [task.paragraphs_apart(parts) for _, parts in documents(curated)]
        unseen = illustrated_web(self.tests, derive(self.seed, "test web", trial))
        tests = [
            [Part(value) if kind == "text" else Part(None, unseen.images[value], value) for kind, value in page.order]
            for page in unseen.pages
            if page.copy_of < 0
        ]
        words = task.vocabulary(kept)
        config = TrainConfig(
            phases=[Phase(tokens=self.tokens, lr=self.rate, warmup_tokens=self.tokens // 20)],
            seq_len=self.seq_len, batch_size=self.batch_size, seed=derive(self.seed, "training", trial) % 2**31,
        )  # fmt: skip
        sizes = decoder(task.FIRST_WORD + len(words), self.dim, self.dim // 32, self.layers, self.seq_len)
        found = {}
        for arm in (INTERLEAVED, SHUFFLED):
            read = kept if arm == INTERLEAVED else task.shuffled(kept, derive(self.seed, "shuffled", trial))
            model = Decoder(sizes, generator(self.seed, "init", trial)).to(pick_device())
            task.fit_order(read, words, model, config)
            found[arm] = task.word_after_image(model, tests, words, self.seq_len)
        return found

    def order_claim(self, found: Mapping[int, Any]) -> Claim:
        """Reading in order teaches what an image is called."""
        asked = ", ".join(f"{r[INTERLEAVED]['asked']:,}" for r in found.values())
        return Claim(
            statement="Reading documents in order teaches what an image is called; reading them shuffled does not",
            paper="our own: the paper trains captioning models on its documents",
            ours={t: r[INTERLEAVED]["among"] for t, r in found.items()},
            baseline={t: r[SHUFFLED]["among"] for t, r in found.items()},
            better="higher",
            margin=0.2,
            unit="accuracy among six shapes",
            names=(INTERLEAVED, SHUFFLED),
            note=f"{self.tokens:,} tokens each; {asked} images of unseen articles, by seed; chance is 1 in 6",
        )

    def show(self, run: Run, pages: Any, pdf: Any, order: Any, real: Mapping[str, Any]) -> None:
        """Figures and tables."""
        from bloomery.recipes import _mint1t_report as report

        report.show_pages(run, pages)
        report.show_pdfs(run, pdf)
        report.show_order(run, order)
        report.show_real(run, real)


def documents(folder: Path) -> Iterator[tuple[str, Document]]:
    """Address and parts of every document that a run has left, in input order."""
    from bloomery import corpus
    from bloomery.corpus.interleaved import parts_of

    for path in sorted(folder.glob("*.parquet")):
        for batch in corpus.read_documents(path):
            yield from zip(batch.column("url").to_pylist(), parts_of(batch), strict=True)


def _bare(kind: str, value: str) -> tuple[str, str]:
    """An item without its white space, which macros and comments may change."""
    return kind, "".join(value.split())
