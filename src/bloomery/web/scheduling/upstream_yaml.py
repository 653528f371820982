"""The reference's configuration files, read unchanged: `load("crawl.yaml", source)` makes a `Crawl`.

Keys: `selection_method`, `order`, `num_selected_docs_per_iter`, `max_num_docs`, `rating_methods` (each with `type` and
its arguments), and those about places and processes, which have no meaning here and are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bloomery.core.config import load_yaml
from bloomery.core.errors import ConfigError, nearest
from bloomery.corpus.fasttext_bin import FastTextScorer
from bloomery.corpus.quality import Scorer
from bloomery.web.scheduling.crawl import Crawl
from bloomery.web.scheduling.raters import Ensemble, InLinks, Length, MinMax, Quality, RandomScore, Rater, ZScore

TYPES = ("length", "inlink_count", "random_score", "fasttext_score", "ensemble_score")
PASSED_OVER = {
    "cw22_root_path", "seed_docs_file", "output_dir", "num_workers", "save_state_every", "max_num_in_mem_docs", "seed",
    "wandb", "wandb_project", "wandb_run_name",
}  # fmt: skip
READ = {"selection_method", "order", "num_selected_docs_per_iter", "max_num_docs", "rating_methods"}


def load(path: Path | str, source: Any, load_scorer: Callable[[str], Scorer] | None = None) -> Crawl:
    """The crawl that a configuration file describes, over `source` (links and texts)."""
    return make_crawl(load_yaml(Path(path)), source, load_scorer, where=str(path))


def make_crawl(
    config: Mapping[str, Any], source: Any, load_scorer: Callable[[str], Scorer] | None = None, where: str = ""
) -> Crawl:
    """The crawl of a parsed configuration. `load_scorer` turns a `model_path` into a scorer; by default fastText."""
    for key in config:
        if key not in READ | PASSED_OVER:
            raise ConfigError(f"unknown field {key!r}", where=where or None, fix=nearest(key, READ | PASSED_OVER))
    for key in READ - {"order"}:
        if key not in config:
            raise ConfigError(f"no {key!r}", where=where or None)
    raters: list[Rater] = []
    normalisers: dict[str, ZScore | MinMax] = {}
    for item in config["rating_methods"]:
        rater = _rater(dict(item), source, load_scorer or FastTextScorer.load, int(config.get("seed", 0)))
        raters.append(rater)
        if item.get("normalizer"):
            normalisers[rater.name] = _normaliser(item["normalizer"], rater.name)
    return Crawl(
        links=source,
        texts=source,
        raters=raters,
        per_iteration=config["num_selected_docs_per_iter"],
        budget=config["max_num_docs"],
        select_by=config["selection_method"],
        order=config.get("order", "desc"),
        normalisers=normalisers,
    )


def _rater(item: dict[str, Any], source: Any, load_scorer: Callable[[str], Scorer], seed: int) -> Rater:
    kind = item.get("type")
    if kind not in TYPES:
        raise ConfigError(f"unknown rating method {kind!r}", fix=nearest(str(kind), TYPES))
    name = item.get("rater_name") or kind
    if kind == "length":
        return Length(name)
    if kind == "inlink_count":
        return InLinks(source, name)
    if kind == "random_score":
        return RandomScore(seed, name)
    if kind == "fasttext_score":
        if "model_path" not in item:
            raise ConfigError("fasttext_score needs a model_path", where=name)
        return Quality(load_scorer(item["model_path"]), name)
    return Ensemble({part["rater_name"]: float(part["weight"]) for part in item["raters_and_weights"]}, name)


def _normaliser(item: Mapping[str, Any], name: str) -> ZScore | MinMax:
    kind = item.get("type")
    if kind == "zscore":
        return ZScore(float(item["mean"]), float(item["std"]))
    if kind == "minmax":
        return MinMax(float(item["min_score"]), float(item["max_score"]))
    raise ConfigError(f"unknown normalizer {kind!r} of {name}", fix=nearest(str(kind), ("zscore", "minmax")))
