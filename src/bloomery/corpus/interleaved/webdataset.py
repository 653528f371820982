"""The archives of MINT-1T-PDF: for every document a `.json` and a `.tiff` with its images, in WebDataset's layout.

A sample is two files of one key, 32 hex digits. The JSON has `texts` and `images` (names or null, aligned),
`image_metadata` (a list with `height`, `width`, `sha256`, and what else is known, such as `page`), `url` and what the
document's meta says. The TIFF has one frame for every entry of `image_metadata`, without loss. Images whose bytes are
not known cannot be in such a file: they are left out, and a document without any image has no TIFF.

Equal documents give equal bytes: no time, owner or place of the machine is written.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from bloomery.core.errors import DataError, require
from bloomery.core.files import atomic_file
from bloomery.corpus.interleaved.parts import Part, from_parts, parts_of

MAX_PIXELS = 50_000_000  # of one image, looked at before it is decoded
MAX_FRAMES = 1_000
MAX_MEMBER = 512 << 20  # bytes of one file in an archive
BATCH = 64
_KEY = re.compile(r"[0-9a-f]{32}")
_OURS = ("texts", "images", "image_metadata", "url", "id")


class WebDatasetWriter:
    """Writes documents to an open file; use in a `with`. `counts`: documents and images, and images left out."""

    def __init__(self, file: Any) -> None:
        self._image_module = require("PIL.Image", "interleave")
        self._archive = tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self.counts = {"documents": 0, "images": 0, "left_out": 0}

    def __enter__(self) -> WebDatasetWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        self._archive.close()

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Add documents."""
        names, urls = batch.column("id").to_pylist(), batch.column("url").to_pylist()
        metas = batch.column("meta").to_pylist()
        for name, url, meta, parts in zip(names, urls, metas, parts_of(batch), strict=True):
            frames, sample = _sample(parts, self._image_module)
            key = name if _KEY.fullmatch(name) else xxhash.xxh3_128_hexdigest(name.encode())
            record = {**sample, "url": url, "id": name, **{k: v for k, v in meta or () if k not in _OURS}}
            _add(self._archive, f"{key}.json", json.dumps(record).encode())
            if frames:
                buffer = io.BytesIO()
                frames[0].save(
                    buffer, "TIFF", save_all=True, append_images=frames[1:], compression="tiff_adobe_deflate"
                )
                _add(self._archive, f"{key}.tiff", buffer.getvalue())
            self.counts["documents"] += 1
            self.counts["images"] += len(frames)
            self.counts["left_out"] += sum(part.is_image for part in parts) - len(frames)


def write_webdataset(path: Path | str, batches: Iterable[pa.RecordBatch]) -> dict[str, int]:
    """Write documents to one tar file; returns how many documents and images were written and images left out."""
    with atomic_file(path) as file, WebDatasetWriter(file) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return writer.counts


def read_webdataset(path: Path | str) -> Iterator[pa.RecordBatch]:
    """The documents of such an archive, ours or MINT-1T's; images become PNG.

    Raises:
        DataError: not a tar file, a sample that is not as described, or too large.
    """
    image_module = require("PIL.Image", "interleave")
    documents: list[list[Part]] = []
    about: list[dict[str, Any]] = []
    for key, files in _samples(path):
        where = f"{Path(path).name}: {key}"
        if "json" not in files:
            raise DataError("a sample without .json", where=where)
        try:
            record = json.loads(files["json"])
        except ValueError as error:
            raise DataError(f"not JSON: {error}", where=where) from error
        documents.append(_parts(record, files.get("tiff", files.get("tif")), image_module, where))
        about.append({"id": record.get("id") or key, **record})
        if len(documents) == BATCH:
            yield _batch(documents, about)
            documents, about = [], []
    if documents:
        yield _batch(documents, about)


def _sample(parts: list[Part], image_module: Any) -> tuple[list[Any], dict[str, Any]]:
    """The frames, and the aligned lists without images that cannot be decoded."""
    texts: list[str | None] = []
    images: list[str | None] = []
    metadata: list[dict[str, Any]] = []
    frames: list[Any] = []
    for part in parts:
        if part.text is not None:
            texts.append(part.text)
            images.append(None)
            continue
        frame = _decoded(part.image, image_module) if part.image else None
        if frame is None:
            continue
        texts.append(None)
        images.append(part.ref or f"image_{len(frames)}")
        width, height = frame.size
        sha256 = hashlib.sha256(part.image or b"").hexdigest()
        metadata.append({**part.meta, "height": height, "width": width, "sha256": sha256})
        frames.append(frame)
    return frames, {"texts": texts, "images": images, "image_metadata": metadata}


def _decoded(data: bytes, image_module: Any) -> Any:
    """An image in a mode that TIFF and PNG share, or None where it is broken or too large."""
    try:
        image = image_module.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            return None
        return image.convert(image.mode if image.mode in ("L", "RGB", "RGBA") else "RGB")
    except (OSError, ValueError, SyntaxError, image_module.DecompressionBombError):
        return None


def _samples(path: Path | str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Files that follow each other and share a key."""
    key, files = "", dict[str, bytes]()
    try:
        with tarfile.open(path, mode="r:") as archive:
            for member in archive:
                if not member.isreg():
                    continue
                if member.size > MAX_MEMBER:
                    raise DataError(f"a file of {member.size:,} bytes", where=f"{Path(path).name}: {member.name}")
                stem, _, ending = member.name.rpartition("/")[2].partition(".")
                if files and stem != key:
                    yield key, files
                    files = {}
                content = archive.extractfile(member)
                key, files[ending.lower()] = stem, content.read() if content is not None else b""
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"cannot be read: {error}", where=path) from error
    if files:
        yield key, files


def _parts(record: Any, tiff: bytes | None, image_module: Any, where: str) -> list[Part]:
    texts, images = (record.get(name) for name in ("texts", "images")) if isinstance(record, dict) else (None, None)
    if not isinstance(texts, list) or not isinstance(images, list) or len(texts) != len(images):
        raise DataError("texts and images are not lists of one length", where=where)
    metadata, frames = record.get("image_metadata") or [], _frames(tiff, image_module, where)
    count = sum(image is not None for image in images)
    if count != len(frames) or len(metadata) != count:
        raise DataError(f"{count} images, {len(frames)} frames, {len(metadata)} image_metadata", where=where)
    parts = []
    pictures = zip(frames, metadata, strict=True)
    for text, image in zip(texts, images, strict=True):
        if (text is None) == (image is None):
            raise DataError("not exactly one of text and image at every place", where=where)
        if image is None:
            parts.append(Part(text))
        else:
            frame, meta = next(pictures)
            parts.append(Part(None, frame, image, {**meta, "format": "png"}))
    return parts


def _frames(tiff: bytes | None, image_module: Any, where: str) -> list[bytes]:
    if tiff is None:
        return []
    found = []
    try:
        image = image_module.open(io.BytesIO(tiff), formats=["TIFF"])
        for number in range(min(getattr(image, "n_frames", 1), MAX_FRAMES + 1)):
            image.seek(number)
            if number == MAX_FRAMES or image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"more than {MAX_FRAMES} frames, or one of more than {MAX_PIXELS:,} pixels", where=where
                )
            buffer = io.BytesIO()
            image.convert(image.mode if image.mode in ("L", "RGB", "RGBA") else "RGB").save(buffer, "PNG")
            found.append(buffer.getvalue())
    except (OSError, ValueError, SyntaxError, EOFError, image_module.DecompressionBombError) as error:
        raise DataError(f"the .tiff cannot be read: {error}", where=where) from error
    return found


def _batch(documents: list[list[Part]], about: list[dict[str, Any]]) -> pa.RecordBatch:
    metas = [
        {k: v if isinstance(v, str) else json.dumps(v) for k, v in record.items() if k not in _OURS and v is not None}
        for record in about
    ]
    urls = [record.get("url") for record in about]
    return from_parts(documents, [str(record["id"]) for record in about], urls, metas)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
