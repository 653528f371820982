"""PDF to interleaved parts in reading order, as MINT-1T makes them (arXiv 2406.11271, §3.1.2), by PDFium.

    child process: segments of text and images with their boxes      (pdf_worker)
    headers and footers that repeat on other pages are taken out     (pdf_layout.without_margins)
    reading order of every page: columns, bands, pictures            (pdf_layout.reading_order)
    lines to paragraphs, across columns and pages                    (pdf_layout.paragraphs)

MINT-1T reads PDFs with PyMuPDF, whose licence this library cannot take over; PDFium sees the same boxes. As there, a
file of more than 50 MB or 50 pages is left out, and so is a page without text. Only images that the file holds are
found: a figure drawn of lines is not, and its labels stay in the text.

A file that is encrypted, broken, a decompression bomb or too slow raises `DataError` with the reason; a crash of the
native library is one such reason, and the next file gets a new child.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from bloomery.core.errors import DataError, require
from bloomery.corpus.interleaved import Part
from bloomery.web.interleave import pdf_worker
from bloomery.web.interleave.pdf_layout import Item, paragraphs, reading_order, without_margins

Order = Callable[[Sequence[Item], float, float], list[list[Item]]]

_RIGHT_TO_LEFT = re.compile(r"[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_LETTER = re.compile(r"[^\W\d_]")
# Ligatures and Arabic presentation forms are shapes of letters; control characters are not text.
_LETTERS = {
    code: unicodedata.normalize("NFKC", chr(code))
    for code in (*range(0xFB00, 0xFB07), *range(0xFB1D, 0xFDF3), *range(0xFE70, 0xFEFD))
} | {code: " " for code in (*range(0x20), *range(0x7F, 0xA0))}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What is refused (`bytes`, `pages`, `characters`, `objects` on a page, `seconds`, `memory`) and what left out."""

    bytes: int = 50 << 20
    pages: int = 50
    characters: int = 1_000_000
    objects: int = 50_000
    seconds: float = 30.0
    memory: int = 2 << 30  # of address space, in the child
    images: int = 200  # in a document; further ones keep their place but not their bytes
    min_pixels: int = 150  # shorter side; smaller images are ignored
    max_pixels: int = 50_000_000  # of an image; looked at before it is decoded
    image_bytes: int = 64 << 20  # of all images of a document


class PdfReader:
    """Reads PDFs one after the other with one child process; close it, or use it in a `with`."""

    def __init__(self, limits: Limits | None = None) -> None:
        require("pypdfium2", "interleave")
        require("PIL", "interleave")
        self.limits = limits or Limits()
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> PdfReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for stream in (self._child.stdin, self._child.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            self._child = None

    def read(self, data: bytes, where: str = "", order: Order = reading_order) -> list[Part]:
        """The parts of a PDF in reading order. Images are PNG, or JPEG as they are, with the page in their metadata.

        `order` takes the items of a page, its width and its height to runs of lines and pictures.

        Raises:
            DataError: the file is refused; the message is the reason.
        """
        if len(data) > self.limits.bytes:
            raise DataError(f"PDF has more than {self.limits.bytes >> 20} MB", where=where or None)
        answer, blobs = self._ask({"do": "read", **asdict(self.limits)}, data, where)
        parts = _parts(answer["pages"], blobs, self.limits, order)
        if not any(part.text for part in parts):
            raise DataError("PDF has no text", where=where or None, fix="scanned pages need character recognition")
        return parts

    def picture(self, data: bytes, where: str = "") -> bytes:
        """The first page as PNG.

        Raises:
            DataError: as for `read`.
        """
        if len(data) > self.limits.bytes:
            raise DataError(f"PDF has more than {self.limits.bytes >> 20} MB", where=where or None)
        return self._ask({"do": "render", **asdict(self.limits)}, data, where)[1]

    def _ask(self, request: dict[str, Any], data: bytes, where: str) -> tuple[dict[str, Any], bytes]:
        if self._child is None or self._child.poll() is not None:
            self.close()
            script = str(Path(pdf_worker.__file__).resolve())
            self._child = subprocess.Popen(
                [sys.executable, "-P", script, str(self.limits.memory)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(self.limits.seconds, stop)
        timer.start()
        try:
            pdf_worker.write_message(child.stdin, request, data)
            answer = pdf_worker.read_message(child.stdout)
        except (OSError, ValueError):  # it died while we wrote, or in the middle of its answer
            answer = None
        finally:
            timer.cancel()
        if answer is None:
            self.close()
            reason = f"took more than {self.limits.seconds:g} s" if late.is_set() else "crashed the PDF library"
            raise DataError(f"PDF {reason}", where=where or None, fix="it is left out; the next file is read normally")
        if "refused" in answer[0]:
            raise DataError(f"PDF {answer[0]['refused']}", where=where or None)
        return answer


def _parts(pages: Sequence[dict[str, Any]], blobs: bytes, limits: Limits, order: Order) -> list[Part]:
    """Pages as the child describes them, in reading order."""
    pictures: list[Part] = []
    sheets: list[list[Item]] = []
    begin = 0
    for number, page in enumerate(pages):
        items = [_text(*segment) for segment in page["segments"]]
        for n, image in enumerate(page["images"]):
            data, begin = blobs[begin : begin + image["bytes"]], begin + image["bytes"]
            if not items or min(image["size"]) < limits.min_pixels or not _visible(image["box"]):
                continue
            x0, y0, x1, y1 = image["box"]
            items.append(Item(x0, y0, x1, y1, picture=len(pictures)))
            pictures.append(_picture(data, image["size"], number, n))
        sheets.append([_mirrored(item, page["size"][0]) for item in items] if _right_to_left(items) else items)
    runs = [
        run
        for items, page in zip(without_margins(sheets, [p["size"][1] for p in pages]), pages, strict=True)
        for run in order(items, *page["size"])
    ]
    return [
        pictures[found.picture] if found.picture >= 0 else Part(found.text)
        for found in paragraphs(runs)
        if found.picture >= 0 or found.text
    ]


def _text(text: str, x0: float, y0: float, x1: float, y1: float, size: float) -> Item:
    return Item(x0, y0, x1, y1, " ".join(text.translate(_LETTERS).split()), size)


def _picture(data: bytes, size: Sequence[int], page: int, number: int) -> Part:
    meta: dict[str, Any] = {"page": page, "width": size[0], "height": size[1]}
    if data:
        meta |= {
            "format": "jpeg" if data[:2] == b"\xff\xd8" else "png",
            "sha256": hashlib.sha256(data).hexdigest(),
        }  # fmt: skip
    return Part(None, data or None, f"page_{page}_image_{number}", meta)


def _visible(box: Sequence[float]) -> bool:
    return box[2] > box[0] and box[3] > box[1]


def _right_to_left(items: Sequence[Item]) -> bool:
    """Whether most letters of a page belong to scripts written from right to left."""
    text = "".join(item.text for item in items)
    return 2 * len(_RIGHT_TO_LEFT.findall(text)) > len(_LETTER.findall(text)) > 0


def _mirrored(item: Item, width: float) -> Item:
    return replace(item, x0=width - item.x1, x1=width - item.x0)
