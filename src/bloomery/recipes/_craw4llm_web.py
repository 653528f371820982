"""The real web of `craw4llm`: pages, links and text of the installed documentation, and the classifier that rates them.

Modules are split by name: the pages of a tenth are no part of the web, and their documentation is what the models are
measured on; those of half of the rest teach the classifier what documentation and what a source listing is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bloomery.core.errors import EmptyError
from bloomery.core.files import read_json, write_json
from bloomery.core.seeds import rng
from bloomery.corpus.split import split_of

HELD_OUT, TEACHING = 0.1, 0.5
DOCUMENTATION = ("module", "class", "function")  # kinds of pages; the others are source listings and indices
PART = 1_500  # characters of a page; longer ones are served in parts, so that no page is worth ten
SCORER_TEXTS, MIN_TEXT = 1_500, 200  # texts of either kind, at most; characters


def build(folder: Path, packages: list[str], limit: int, seed: int) -> dict[str, int]:
    """Write `pages.jsonl`, `held_out.json` and the folder `scorer`; how many of each."""
    from bloomery.corpus import LinearScorer
    from bloomery.web import main_text
    from bloomery.worlds.installed_docs import InstalledDocs, page_links

    site = InstalledDocs(packages or None)
    side = {path: split_of(site.module_of(path) or path, seed, HELD_OUT) for path in site.paths}
    paths = [path for path in site.paths if side[path] == "train"]
    if len(paths) > limit:
        paths = sorted(paths[i] for i in rng(seed, "pages").choice(len(paths), limit, replace=False))
    inside = set(paths)
    good, bad = [], []
    with (folder / "pages.jsonl").open("w", encoding="utf-8") as file:
        for path in paths:
            page = site.page(path)
            links = sorted(set(page_links(page.html)) & inside - {path})
            text = main_text(page.html)
            for name, part, onward in in_parts(path, text):
                row = {"path": name, "kind": page.kind, "links": links if name == path else [path], "text": part}
                file.write(json.dumps(row | {"links": [*row["links"], *onward]}) + "\n")
            if split_of(page.module, seed + 1, TEACHING) == "validation":
                if page.kind == "source":
                    bad += [part for _, part, _ in in_parts(path, text)]
                elif page.kind in DOCUMENTATION and len(text) >= MIN_TEXT:
                    good.append(text)
    unseen = [path for path in site.paths if side[path] != "train" and site.entries[path].kind in DOCUMENTATION]
    held_out = [text for path in unseen if len(text := main_text(site.page(path).html)) >= MIN_TEXT]
    if not held_out or not good or not bad:
        raise EmptyError("too little documentation to learn from", fix="name more packages")
    write_json(folder / "held_out.json", held_out)
    scorer = LinearScorer.train(_some(good, seed), _some(bad, seed), seed=seed)
    scorer.save(folder / "scorer")
    return {"rendered": len(paths), "held_out": len(held_out), "good": len(good), "bad": len(bad)}


def in_parts(path: str, text: str) -> Iterator[tuple[str, str, list[str]]]:
    """A long text as a site would serve it: (address, text, address of the next part) of parts of 1,500 characters."""
    count = max(1, -(-len(text) // PART))
    for i in range(count):
        name = path if i == 0 else f"{path}?part={i}"
        yield name, text[i * PART : (i + 1) * PART], [f"{path}?part={i + 1}"] if i + 1 < count else []


def load(folder: Path) -> tuple[Any, Any, list[str], dict[str, str]]:
    """The web, the classifier, the held-out docstrings, and the kind of every page."""
    from bloomery.corpus import LinearScorer
    from bloomery.web.scheduling import Pages

    rows = [json.loads(line) for line in (folder / "pages.jsonl").read_text(encoding="utf-8").splitlines()]
    incoming: dict[Any, int] = {}
    for row in rows:
        for target in row["links"]:
            incoming[target] = incoming.get(target, 0) + 1
    web = Pages({row["path"]: row["text"] for row in rows}, {row["path"]: row["links"] for row in rows}, incoming)
    kinds = {row["path"]: row["kind"] for row in rows}
    return web, LinearScorer.load(folder / "scorer"), read_json(folder / "held_out.json"), kinds


def _some(texts: list[str], seed: int) -> list[str]:
    order = rng(seed, "teaching").permutation(len(texts))[:SCORER_TEXTS]
    return [texts[i] for i in sorted(order)]
