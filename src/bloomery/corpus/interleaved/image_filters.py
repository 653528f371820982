"""Which images of a document stay: by size, shape, kind and address, and whether they are safe to show.

`ImageShape` has the bounds of OBELICS and MINT-1T (arXiv 2306.16527, appendix A.1; arXiv 2406.11271, §3.2): sides of
150 to 20,000 pixels, the longer at most twice the shorter, three times in PDFs (figures of papers are wide).
`SafeImages` takes any classifier; none comes with the library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus.interleaved.flat_images import image_bytes, images_of, remove_images
from bloomery.corpus.interleaved.images import FORMATS
from bloomery.corpus.interleaved.pixels import decoded
from bloomery.corpus.steps import Plan, Step, drop

PAPERS = ("application/pdf", "application/x-tex")

Classifier = Callable[[np.ndarray], Any]  # (images, height, width, 3) uint8 -> (images, classes), or (images,) of one


@dataclass(frozen=True)
class ImageShape(Step):
    """Remove images that are too small, too large, too long, of another format, or at an address with a banned word.

    A size that is not known is not judged. The rendered size, which a page asks for, must lie within the same bounds of
    pixels; one in percent is taken of the original.

    Args:
        min_side: pixels of the shorter side.
        max_side: pixels of the longer side.
        html_aspect: longest allowed longer side over shorter side on pages.
        paper_aspect: the same in PDF files and LaTeX sources.
        formats: as the metadata says (`LoadImages` writes it); None = any.
        banned: an image whose address (not a name inside of a paper) contains one of these goes, in either case.
            (MINT-1T drops the whole document.)
    """

    min_side: int = 150
    max_side: int = 20_000
    html_aspect: float = 2.0
    paper_aspect: float = 3.0
    formats: Sequence[str] | None = FORMATS
    banned: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.min_side <= self.max_side:
            raise ConfigError(f"min_side={self.min_side}, max_side={self.max_side}", where="ImageShape")
        for name in ("html_aspect", "paper_aspect"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name}={getattr(self, name)}", where="ImageShape", fix="1 or more")

    @property
    def reads(self) -> tuple[str, ...]:
        """The parts, and the meta that says whether a document is a page or a paper."""
        return ("parts", "meta")

    @property
    def writes(self) -> tuple[str, ...]:
        """The parts."""
        return ("parts",)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The documents without those images."""
        papers = [dict(meta or ()).get("content_type") in PAPERS for meta in batch.column("meta").to_pylist()]
        images = images_of(batch)
        aspects = [self.paper_aspect if papers[document] else self.html_aspect for document in images.document]
        rows = zip(images.refs, images.metas, aspects, strict=True)
        return remove_images(batch, images, [self.reason(ref or "", meta, aspect) for ref, meta, aspect in rows])

    def reason(self, ref: str, meta: Mapping[str, Any], aspect: float) -> str | None:
        """Why an image with this address and metadata goes, or None."""
        if "://" in ref and any(word in ref.lower() for word in self.banned):
            return "banned word in the address"
        kind = None if self.formats is None else meta.get("format")
        known_as = {"jpeg": "jpg"}.get(str(kind), kind)
        if kind is not None and not {kind, known_as}.intersection(self.formats or ()):
            return f"format {str(kind)[:20]}"
        for prefix in ("", "rendered_"):
            size = [_pixels(meta, side, prefix) for side in ("width", "height")]
            known = [pixels for pixels in size if pixels is not None]
            if known and min(known) < self.min_side:
                return "too small"
            if known and max(known) > self.max_side:
                return "too large"
            if not prefix and len(known) == 2 and max(known) > aspect * min(known):
                return "too long or too wide"
        return None


@dataclass(frozen=True)
class SafeImages(Step):
    """Drop a document if any of its images is unsafe by `classifier`; remove images that cannot be judged:
    those that have no bytes or cannot be decoded.

    Args:
        classifier: RGB images, uint8 (images, size, size, 3), to scores (images, classes) in the order of `limits`;
            (images,) where there is one class. It is told apart by its `fingerprint()`, or by its name, in a run that
            is continued.
        limits: for every class, the score above which an image is unsafe. The defaults are those of OBELICS'
            classifier (build script, step 2).
        size: pixels of a side; the images are resized to a square.
        batch: images at a time.

    Raises:
        DataError: the classifier returned NaN, or another number of scores; the message names the image.
    """

    classifier: Classifier
    limits: Mapping[str, float] = field(default_factory=lambda: {"hentai": 0.9, "porn": 0.85})
    size: int = 224
    batch: int = 64

    def __post_init__(self) -> None:
        if not self.limits:
            raise ConfigError("no class of unsafe images", where="SafeImages.limits", fix='such as {"porn": 0.85}')

    @property
    def writes(self) -> tuple[str, ...]:
        """The parts."""
        return ("parts",)

    def plan(self, documents: int, bytes: int) -> Plan:
        """The decoded images of one batch."""
        return Plan(ram_bytes=self.batch * self.size * self.size * 3)

    def fingerprint(self) -> dict[str, Any]:
        """The limits, and who judges."""
        own = getattr(self.classifier, "fingerprint", None)
        who = self.classifier if hasattr(self.classifier, "__qualname__") else type(self.classifier)
        name = own() if callable(own) else f"{who.__module__}.{getattr(who, '__qualname__', '')}"
        return {"step": "SafeImages", "classifier": name, "limits": dict(self.limits), "size": self.size}

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The documents whose images are all safe."""
        images = images_of(batch)
        unsafe = np.zeros(batch.num_rows, dtype=bool)
        reasons: list[str | None] = [None] * len(images.at)
        for start in range(0, len(images.at), self.batch):
            chosen, pixels = [], []
            for row, data in enumerate(image_bytes(batch, images.at[start : start + self.batch]), start):
                found = None if data is None else decoded(data, (self.size, self.size), "RGB")
                if found is None:
                    reasons[row] = "no bytes to judge" if data is None else "cannot be decoded"
                else:
                    chosen.append(row)
                    pixels.append(found)
            if chosen:
                scores = self._scores(np.stack(pixels), [images.refs[row] or "" for row in chosen])
                unsafe[images.document[chosen]] |= (scores > np.array(list(self.limits.values()))).any(axis=1)
        return drop(remove_images(batch, images, reasons), unsafe, "unsafe image")

    def _scores(self, pixels: np.ndarray, names: list[str]) -> np.ndarray:
        scores = np.asarray(self.classifier(pixels), dtype=np.float64)
        scores = scores[:, None] if scores.ndim == 1 else scores
        if scores.shape != (len(names), len(self.limits)):
            raise DataError(
                f"the image classifier returned shape {scores.shape} for {len(names)} images", where=names[0] or None,
                fix=f"(images, {len(self.limits)}): one score for each of {', '.join(self.limits)}",
            )  # fmt: skip
        bad = np.flatnonzero(np.isnan(scores).any(axis=1))
        if len(bad):
            raise DataError("the image classifier returned NaN", where=names[bad[0]] or "an image without a name")
        return scores


def _pixels(meta: Mapping[str, Any], side: str, prefix: str) -> float | None:
    """A side in pixels; one in percent is taken of the original. None where it is not known."""
    value = meta.get(f"{prefix}{side}")
    if isinstance(value, str) and value.endswith("%"):
        original = meta.get(side)
        try:
            return original * float(value[:-1]) / 100 if isinstance(original, int) else None
        except ValueError:
            return None
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
