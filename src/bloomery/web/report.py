"""What a crawl reports at its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bloomery.core.errors import EmptyError, WebError
from bloomery.web.store import EXCLUDED, QUEUED, REDIRECTED, STORED, Store

_FIXES = {
    "robots": "the site does not want to be crawled; ask its owner",
    "refused_address": "allow_private=True permits your own machine and network",
}
_CONTENT_KINDS = {"content_type", "binary", "too_large", "broken_encoding"}


@dataclass
class CrawlReport:
    """What a crawl did, over all its runs. Written to `crawl.json` in its folder."""

    folder: str
    seeds: list[str]
    finished: str  # "no links left" or "max_pages reached"
    pages: int
    bytes: int  # of the stored bodies, decoded
    queued: int  # links found and not fetched
    visited: int  # addresses asked for, whatever came of it
    rounds: int  # of a reproducible best-first crawl
    redirects: int
    robots_excluded: int
    errors: dict[str, int]  # kind -> addresses
    examples: dict[str, list[str]]  # kind -> a few "url: what happened"
    seconds: float  # of all runs
    segments: list[str] = field(default_factory=list)  # WARC files, relative to the folder

    @classmethod
    def of(cls, store: Store, seeds: list[str], max_pages: int) -> CrawlReport:
        """The report of the crawl in a store that has been stopped."""
        totals, errors, excluded = store.totals(), store.failures(), store.failures(EXCLUDED)
        pages, size = totals.get(STORED, (0, 0))
        return cls(
            folder=str(store.folder),
            seeds=seeds,
            finished="max_pages reached" if pages >= max_pages else "no links left",
            pages=pages,
            bytes=size,
            queued=totals.get(QUEUED, (0, 0))[0],
            visited=sum(count for state, (count, _) in totals.items() if state not in (QUEUED, EXCLUDED)),
            rounds=int(store.meta("rounds", "0")),
            redirects=totals.get(REDIRECTED, (0, 0))[0],
            robots_excluded=excluded.get("robots", 0),
            errors=errors,
            examples={kind: store.examples(kind) for kind in (*errors, *excluded)},
            seconds=round(float(store.meta("seconds", "0")), 3),
            segments=[path.name for path in store.segments()],
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values."""
        return dict(vars(self))

    def summary(self) -> str:
        """One line."""
        rate = self.pages / max(self.seconds, 1e-9)
        errors = ", ".join(f"{kind} {count}" for kind, count in self.errors.items()) or "none"
        return (
            f"{self.pages:,} pages, {self.bytes / 1e6:,.1f} MB in {self.seconds:,.1f} s ({rate:,.1f} pages/s), "
            f"{self.redirects} redirects, {self.robots_excluded} excluded by robots.txt, errors: {errors}"
        )

    def raise_if_empty(self) -> None:
        """Raise `WebError` or `EmptyError` with the reasons when not one page was stored."""
        if self.pages:
            return
        kinds = set(self.examples)
        reasons = [example for examples in self.examples.values() for example in examples]
        fix = _FIXES.get(next(iter(kinds)), "") if len(kinds) == 1 else ""
        error = EmptyError if kinds <= _CONTENT_KINDS else WebError
        raise error(
            "no page could be crawled: " + "; ".join(reasons[:3]),
            fix=fix or "check the seeds and the network, then run the same command again",
        )
