"""The scorer of the main job's quality-first crawl: documentation against source listings, learned before the crawl."""

from __future__ import annotations

from itertools import islice
from typing import Any

from bloomery.core.seeds import rng
from bloomery.corpus.split import split_of
from bloomery.recipes._inputs import HELD_OUT, Inputs

TEXTS = 300  # of either kind


def page_scorer(site: Any, inputs: Inputs, seed: int) -> Any:
    """Docstrings of training modules against the listings of their sources, as a scorer of pages."""
    from bloomery.corpus import LinearScorer
    from bloomery.web import main_text
    from bloomery.web.scheduling.live import PageQuality

    listings = [path for path in site.paths if site.entries[path].kind == "source"]
    order = (listings[i] for i in rng(seed, "listings").permutation(len(listings)))
    training = (path for path in order if split_of(site.module_of(path) or path, seed, HELD_OUT) == "train")
    bad = [main_text(site.page(path).html) for path in islice(training, TEXTS)]
    return PageQuality(LinearScorer.train(inputs.good_texts(TEXTS), bad, seed=seed))
