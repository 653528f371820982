"""Perceptual hash: 64 bits that stay (nearly) the same when an image is scaled, compressed anew or brightened.

This is pHash by the discrete cosine transform (C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash
Functions", 2010, §3.2.1), in the variant of the Python library ImageHash: grey, 32 x 32 pixels, two-dimensional DCT-II,
the 8 x 8 lowest frequencies; a bit says whether a coefficient is above their median. Bit 0 is the mean, then row by
row; the hash is written as 16 hex digits, the first bit the highest.

Everything after Pillow's decoding and scaling is integer arithmetic (the cosines are rounded to 20 bits), so that a
hash does not depend on the machine's order of summation. A flat image, whose 32 x 32 pixels differ by less than
`FLAT` grey levels, has no hash: its bits would be noise, and all such images would look alike.

Not recognised: crops, mirror images, rotations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from bloomery.corpus.interleaved.flat_images import image_bytes, images_of, remove_images, with_image_metas
from bloomery.corpus.interleaved.pixels import decoded
from bloomery.corpus.steps import Step

SIDE, LOW = 32, 8
BITS = LOW * LOW
FLAT = 8  # grey levels
BLOCK = 256  # images transformed at a time

_ANGLES = np.pi * np.outer(np.arange(LOW), 2 * np.arange(SIDE) + 1) / (2 * SIDE)
_BASIS = np.rint(2**20 * np.cos(_ANGLES)).astype(np.int64)  # (frequency, pixel)


def phash(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of grey images (images, 32, 32), uint8: uint64 (images,); and which of them are not flat: bool."""
    grey = pixels.reshape(-1, SIDE, SIDE).astype(np.int64)
    # |sum| <= 255 * 32 * 32 * 2**40, below 2**63
    waves = np.matmul(np.matmul(_BASIS, grey), _BASIS.T).reshape(-1, BITS)
    ordered = np.sort(waves, axis=1)
    median_twice = ordered[:, BITS // 2 - 1] // 2 + ordered[:, BITS // 2] // 2  # half of each: the sum would overflow
    above = waves > median_twice[:, None]
    lowest, highest = (f(pixels.reshape(-1, SIDE * SIDE), axis=1, initial=i) for f, i in ((np.min, 255), (np.max, 0)))
    return np.packbits(above, axis=1).view(">u8").astype(np.uint64).ravel(), highest - lowest >= FLAT


def image_hashes(images: Iterable[bytes | None]) -> list[int | bool | None]:
    """For every encoded image its hash; None where it is flat or absent, False where it cannot be decoded."""
    found: list[int | bool | None] = []
    waiting: list[np.ndarray] = []
    places: list[int] = []

    def settle() -> None:
        for place, value, good in zip(places, *phash(np.array(waiting, np.uint8)), strict=True):
            found[place] = int(value) if good else None
        waiting.clear()
        places.clear()

    for data in images:
        pixels = None if data is None else decoded(data, (SIDE, SIDE), "L")
        found.append(None if data is None or pixels is not None else False)
        if pixels is not None:
            waiting.append(pixels)
            places.append(len(found) - 1)
        if len(waiting) == BLOCK:
            settle()
    settle()
    return found


@dataclass(frozen=True)
class HashImages(Step):
    """Write the hash of every image into its metadata, as `phash`; remove images that cannot be decoded."""

    @property
    def writes(self) -> tuple[str, ...]:
        """The parts."""
        return ("parts",)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The documents with hashed images."""
        images = images_of(batch)
        data = (image_bytes(batch, images.at[start : start + 1])[0] for start in range(len(images.at)))
        hashes = image_hashes(data)
        for meta, value in zip(images.metas, hashes, strict=True):
            meta.pop("phash", None)
            if value is not None and value is not False:
                meta["phash"] = f"{value:016x}"
        reasons = ["cannot be decoded" if value is False else None for value in hashes]
        return remove_images(with_image_metas(batch, images), images, reasons)
