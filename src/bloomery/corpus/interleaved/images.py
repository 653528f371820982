"""Image bytes into documents: from the web, a folder or a mapping, with limits that are checked before decoding.

`LoadImages(source)` asks a source for the images that a document has only by address, and looks at the header of every
image. What cannot be had, or is refused, loses its place in the document; the report counts the reasons.

    LoadImages(WebImages(cache))        over the network (`web.image_fetch`)
    LoadImages(FolderImages(folder))    files that lie there as HOST/PATH, as `wget --mirror` leaves them
    LoadImages(GivenImages(mapping))    address -> bytes: generated worlds, tests
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import pyarrow as pa

from bloomery.core.errors import ConfigError, DataError, nearest
from bloomery.core.hashing import digest
from bloomery.corpus.interleaved.flat_images import replace_parts
from bloomery.corpus.interleaved.image_header import KINDS, image_header
from bloomery.corpus.interleaved.parts import Part, parts_of
from bloomery.corpus.steps import Plan, Step

FORMATS = ("jpg", "jpeg", "png", "webp")
AT_ONCE = 128  # images that a source is asked for together
DOCUMENT_IMAGES, IMAGE_BYTES = 5, 50_000  # of an average document, for estimates


class Missing(NamedTuple):
    """Why an image could not be had, in few and repeating words, so that reasons can be counted."""

    reason: str


class ImageSource(Protocol):
    """Where images come from."""

    def prepare(self, addresses: Sequence[str]) -> None:
        """Many addresses that `get` will be asked for, some at a time: the moment to fetch them side by side."""

    def get(self, addresses: Sequence[str]) -> list[bytes | Missing]:
        """The bytes of every address, in order; they come without repeats."""

    def fingerprint(self) -> Any:
        """What decides the answers, as plain values."""


@dataclass(frozen=True)
class GivenImages:
    """Images by their address, in memory."""

    images: Mapping[str, bytes]

    def prepare(self, addresses: Sequence[str]) -> None:
        """Nothing to do."""

    def get(self, addresses: Sequence[str]) -> list[bytes | Missing]:
        """Those that are given."""
        return [self.images.get(address, Missing("not found")) for address in addresses]

    def fingerprint(self) -> dict[str, str]:
        """A hash of addresses and bytes."""
        known = [[address, hashlib.sha256(data).hexdigest()] for address, data in sorted(self.images.items())]
        return {"given": digest(known)}


@dataclass(frozen=True)
class FolderImages:
    """Files below a folder: of `https://host/a/b.png` the file `host/a/b.png`, and `file:` addresses inside the folder.

    Nothing outside the folder is read, whatever an address or a link in the folder says.

    Raises:
        DataError: there is no such folder.
    """

    folder: Path
    max_bytes: int = 10 << 20

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder).absolute())  # workers may run elsewhere

    def prepare(self, addresses: Sequence[str]) -> None:
        """Nothing to do."""

    def get(self, addresses: Sequence[str]) -> list[bytes | Missing]:
        """The files' bytes."""
        if not self.folder.is_dir():
            raise DataError("no such folder of images", where=self.folder)
        root = self.folder.resolve()
        return [self._read(root, address) for address in addresses]

    def fingerprint(self) -> dict[str, Any]:
        """The folder and the limit; files in it are taken not to change."""
        return {"folder": str(self.folder.resolve()), "max_bytes": self.max_bytes}

    def _read(self, root: Path, address: str) -> bytes | Missing:
        try:
            url = urlsplit(address)
            inside = url2pathname(url.path) if url.scheme == "file" else f"{url.netloc}/{unquote(url.path)}"
            path = (root / inside).resolve()  # an absolute path replaces the root; looked at below
            if not path.is_relative_to(root):
                return Missing("outside of the folder")
            if not path.is_file():
                return Missing("not found")
            with path.open("rb") as file:
                data = file.read(self.max_bytes + 1)
        except (OSError, ValueError):
            return Missing("cannot be read")
        return data if len(data) <= self.max_bytes else Missing("too many bytes")


@dataclass(frozen=True)
class FetchImages(Step):
    """Let the source fetch what `LoadImages` will ask for, hundreds of documents at a time; they do not change.

    The slowest host holds up a batch: the more addresses a batch has, the less that counts.
    """

    source: ImageSource
    document_images: int = 100

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The same documents."""
        wanted: dict[str, None] = {}
        for parts in parts_of(batch):
            wanted.update(dict.fromkeys(_absent(parts, self.document_images)))
        self.source.prepare(list(wanted))
        return batch


@dataclass(frozen=True)
class LoadImages(Step):
    """Bytes for the images of a document that have none, and the header of all: size, format and SHA-256 as metadata.

    An image goes when the source does not have it, its format is not among `formats` (what the bytes say, not the
    name), it has more than `max_pixels`, or the images before it have used up `document_images` or `document_bytes`.
    Nothing is decoded.

    Args:
        source: None leaves images without bytes as "not fetched".
        formats: jpg, jpeg, png, webp, gif.
        max_pixels: width times height.
        document_images: images of one document that are looked at.
        document_bytes: of all images of one document, encoded.
    """

    source: ImageSource | None
    formats: tuple[str, ...] = FORMATS
    max_pixels: int = 50_000_000
    document_images: int = 100
    document_bytes: int = 32 << 20

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in (*KINDS, "jpg"):
                raise ConfigError(f"format {name!r}", where="LoadImages", fix=nearest(name, (*KINDS, "jpg")))
        for name in ("max_pixels", "document_images", "document_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}", where="LoadImages", fix="1 or more")

    @property
    def writes(self) -> tuple[str, ...]:
        """The parts."""
        return ("parts",)

    @property
    def max_rows(self) -> int:
        """So few that their images stay below 2 GB, Arrow's bound for a column."""
        return max(1, min(512, (1 << 30) // self.document_bytes))

    def plan(self, documents: int, bytes: int) -> Plan:
        """Images pass through the intermediate files and the output."""
        return Plan(disk_bytes=2 * documents * DOCUMENT_IMAGES * IMAGE_BYTES)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The documents with their images."""
        result: list[list[Part | str]] = []
        waiting: list[list[Part]] = []
        wanted: dict[str, None] = {}

        def settle() -> None:
            found = dict(zip(wanted, self.source.get(list(wanted)), strict=True)) if self.source and wanted else {}
            result.extend(self._document(parts, found) for parts in waiting)
            waiting.clear()
            wanted.clear()

        for parts in parts_of(batch):
            absent = _absent(parts, self.document_images)
            if len(wanted) + len(absent) > AT_ONCE:
                settle()
            waiting.append(parts)
            wanted.update(dict.fromkeys(absent))
        settle()
        return replace_parts(batch, result)

    def _document(self, parts: list[Part], found: Mapping[str, bytes | Missing]) -> list[Part | str]:
        size = images = 0
        result: list[Part | str] = []
        for part in parts:
            images += part.is_image
            seen: Part | str = part
            if part.is_image:
                seen = self._image(part, found) if images <= self.document_images else "too many images in the document"
            if isinstance(seen, Part) and seen.image is not None:
                fits = size + len(seen.image) <= self.document_bytes
                size += len(seen.image) if fits else 0
                seen = seen if fits else "too many bytes in the document"
            result.append(seen)
        return result

    def _image(self, part: Part, found: Mapping[str, bytes | Missing]) -> Part | str:
        data = part.image if part.image is not None else found.get(part.ref or "", Missing("not fetched"))
        if isinstance(data, Missing):
            return str(part.meta.get("missing") or data.reason)
        header = image_header(data)
        if header is None:
            return "not an image of a known kind"
        if header.kind not in self.formats and not (header.kind == "jpeg" and "jpg" in self.formats):
            return f"format {header.kind}"
        if header.width * header.height > self.max_pixels:
            return "too many pixels"
        size = {"width": header.width, "height": header.height, "format": header.kind}
        return replace(part, image=data, meta={**part.meta, **size, "sha256": hashlib.sha256(data).hexdigest()})


def _absent(parts: Sequence[Part], most: int) -> list[str]:
    """The addresses of the images, among the first `most`, that have no bytes."""
    images = [part for part in parts if part.is_image][:most]
    return [part.ref for part in images if part.image is None and part.ref]
