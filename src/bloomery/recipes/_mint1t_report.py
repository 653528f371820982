"""Figures and tables of the recipe `mint1t`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bloomery.lab import figures

if TYPE_CHECKING:
    from bloomery.lab import Run

CURATED, OBELICS = "curated", "OBELICS' reading"


def show_pages(run: Run, found: Mapping[int, Any]) -> None:
    """Pages left by step, order by arm, and every share by seed."""
    steps = found[0][CURATED]["steps"]
    fewer = [("pages", steps[0][1]), *((name, kept) for (_, before), (name, kept) in pairwise(steps) if kept < before)]
    caption = "Pages left after each step that drops some, first seed."
    run.figure("survival", figures.survival(fewer, unit="pages"), caption)
    lcs = {arm: {t: r[CURATED]["lcs"][arm] for t, r in found.items()} for arm in found[0][CURATED]["lcs"]}
    lcs[OBELICS] = {t: r[OBELICS]["lcs"][CURATED] for t, r in found.items()}
    caption = "Longest common subsequence with the article, as a share of the article."
    run.figure("order", figures.bars(lcs, y="share of the article in order"), caption)
    adjacent = {arm: {t: r[CURATED]["adjacent"][arm] for t, r in found.items()} for arm in found[0][CURATED]["lcs"]}
    adjacent[OBELICS] = {t: r[OBELICS]["adjacent"][CURATED] for t, r in found.items()}
    rows = [[arm, _by_seed(lcs[arm]), _by_seed(adjacent[arm])] for arm in lcs]
    columns = ["documents", "in order", "images before their paragraph"]
    run.table("orders", columns, rows, "Shares of the articles, by seed.")
    rows = []
    for arm in (CURATED, OBELICS):
        for t, r in found.items():
            one = r[arm]
            rows.append([
                arm, t, one["pages"] - one["pages_lost"], one["pages_lost"],
                f"{one['copies_removed']:.3f} of {one['copies']}",
                f"{one['banned'] - one['banned_left']} of {one['banned']}",
                f"{one['lines_removed']:.3f} of {one['lines']:,}", f"{one['bad_removed']:.3f} of {one['bad']:,}",
                f"{one['good_lost']:.3f} of {one['good']:,}",
            ])  # fmt: skip
    columns = ["reading", "seed", "articles left", "lost", "copies gone", "banned pages gone", "repeated lines gone",
               "bad images gone", "good images lost"]  # fmt: skip
    run.table("pages", columns, rows, "Banned: with an image whose address says avatar.")


def show_pdfs(run: Run, found: Mapping[int, Any]) -> None:
    """Tau by layout."""
    arms = list(found[0])
    taus = {arm: {name: [r[arm][name] for r in found.values()] for name in found[0][arm]} for arm in arms}
    rows = [[name, *(", ".join(f"{tau:.3f}" for tau in taus[arm][name]) for arm in arms)] for name in taus[arms[0]]]
    run.table("pdfs", ["layout", *arms], rows, "Kendall's tau with the true order of lines and pictures, by seed.")


def show_order(run: Run, found: Mapping[int, Any]) -> None:
    """Accuracy of the two models."""
    arms = list(found[0])
    among = {arm: {t: r[arm]["among"] for t, r in found.items()} for arm in arms}
    caption = "The shape named after an image of an unseen article; chance is 1 in 6."
    run.figure("shapes", figures.bars(among, y="accuracy among six shapes"), caption)
    rows = [
        [arm, _by_seed(among[arm]), _by_seed({t: r[arm]["best"] for t, r in found.items()}),
         f"{fmean(r[arm]['nats'] for r in found.values()):.2f}"]
        for arm in arms
    ]  # fmt: skip
    columns = ["documents", "best of six shapes", "best of all words", "nats"]
    run.table("shapes", columns, rows, "Accuracy by seed, and mean loss, at the name of a shape after an image.")


def show_real(run: Run, found: Mapping[str, Any]) -> None:
    """Real files, where they were given."""
    captions = {
        "latex": "LaTeX sources. Images: of the other reading, of the source.",
        "pdf": "PDF files with ten different paragraphs or more.",
        "web_pages": "Web pages. Paragraphs and images of the truth that are found; tau is the mean over pages.",
    }
    columns = ["document", "beside", "paragraphs found", "images", "Kendall's tau"]
    for name, rows in found.items():
        if rows:
            run.table(f"real {name}", columns, rows, captions[name])


def _by_seed(values: Mapping[int, float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values.values())
