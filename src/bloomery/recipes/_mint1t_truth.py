"""What curation has made of the illustrated web, measured with its truth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np

from bloomery.core.seeds import rng
from bloomery.corpus.interleaved import Part
from bloomery.metrics.order import common_subsequence
from bloomery.worlds.interleaved_pages import IllustratedWeb, Item

Document = list[Part]


def items(parts: Iterable[Part]) -> list[Item]:
    """The paragraphs and the addresses of the images of a document, in its order."""
    found: list[Item] = []
    for part in parts:
        if part.text is None:
            found.append(("image", part.ref or ""))
        else:
            found += [("text", text) for text in part.text.split("\n\n")]
    return found


def order(truth: Sequence[Item], found: Sequence[Item]) -> tuple[float, float]:
    """Longest common subsequence / length of the truth; share of the images directly followed by their paragraph."""
    after = {a: b for a, b in pairwise(found) if a[0] == "image"}
    wanted = [(a, b) for a, b in pairwise(truth) if a[0] == "image"]
    return common_subsequence(truth, found) / len(truth), fmean(after.get(a) == b for a, b in wanted)


def texts_then_images(found: Sequence[Item]) -> list[Item]:
    """The same texts, then the same images."""
    return sorted(found, key=lambda item: item[0] == "image")


def dealt_out(found: Sequence[Item], random: np.random.Generator) -> list[Item]:
    """The places of text and images are known, but not which image belongs where."""
    images = [item for item in found if item[0] == "image"]
    drawn = iter(random.permutation(len(images)).tolist())
    return [images[next(drawn)] if item[0] == "image" else item for item in found]


def survivors(web: IllustratedWeb, left: Mapping[str, Document]) -> dict[int, list[int]]:
    """Pages that are left, by number, for every page that is no copy and that MINT-1T does not ban."""
    found: dict[int, list[int]] = {
        number: [] for number, page in enumerate(web.pages) if page.copy_of < 0 and not page.is_banned
    }
    for number, page in enumerate(web.pages):
        if page.url in left and not page.is_banned:
            found[number if page.copy_of < 0 else page.copy_of].append(number)
    return found


def judge(web: IllustratedWeb, left: Mapping[str, Document], seed: int) -> dict[str, Any]:
    """Shares of what should be gone and is, and of what should be here and is; the order, also of the baselines.

    Of a page and its copies the first that is left is looked at; when none is left, all it held counts as lost.
    """
    groups = survivors(web, left)
    arms: dict[str, list[tuple[float, float]]] = {"curated": [], "texts, then images": [], "images dealt out": []}
    good = lost = bad = bad_left = lines = lines_left = 0
    for number, alive in groups.items():
        truth = web.pages[number].order
        found = items(left[web.pages[alive[0]].url]) if alive else []
        here = set(found)
        arms["curated"].append(order(truth, found))
        kept = [item for item in found if item in set(truth)]  # baselines are not charged for boilerplate
        arms["texts, then images"].append(order(truth, texts_then_images(kept)))
        arms["images dealt out"].append(order(truth, dealt_out(kept, rng(seed, "dealt out", number))))
        images = [item for item in truth if item[0] == "image"]
        good, lost = good + len(images), lost + sum(item not in here for item in images)
    for number in (number for alive in groups.values() for number in alive):
        page = web.pages[number]
        parts = left[page.url]
        refs = {part.ref for part in parts if part.is_image}
        text = "\n\n".join(part.text for part in parts if part.text)
        bad, bad_left = bad + len(page.bad_images), bad_left + sum(address in refs for address in page.bad_images)
        lines, lines_left = lines + len(page.boilerplate), lines_left + sum(line in text for line in page.boilerplate)
    copies = sum(page.copy_of >= 0 and not web.pages[page.copy_of].is_banned for page in web.pages)
    surplus = sum(max(0, len(alive) - 1) for alive in groups.values())
    return {
        "lcs": {arm: fmean(pair[0] for pair in pairs) for arm, pairs in arms.items()},
        "adjacent": {arm: fmean(pair[1] for pair in pairs) for arm, pairs in arms.items()},
        "pages": len(groups), "pages_lost": sum(not alive for alive in groups.values()),
        "copies": copies, "copies_removed": 1 - surplus / max(1, copies),
        "banned": sum(page.is_banned for page in web.pages),
        "banned_left": sum(page.is_banned and page.url in left for page in web.pages),
        "good": good, "good_lost": lost / good,
        "bad": bad, "bad_removed": 1 - bad_left / max(1, bad),
        "lines": lines, "lines_removed": 1 - lines_left / max(1, lines),
    }  # fmt: skip
