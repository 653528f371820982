"""Encoded images to small arrays of pixels, bounded: what is too large by its header is not decoded."""

from __future__ import annotations

import io
import warnings
from typing import Literal

import numpy as np

from bloomery.core.errors import require
from bloomery.corpus.interleaved.image_header import KINDS, image_header

MAX_PIXELS = 50_000_000


def decoded(data: bytes, size: tuple[int, int], mode: Literal["L", "RGB"]) -> np.ndarray | None:
    """The image resized to (width, height): uint8 (height, width), with "RGB" (height, width, 3).

    None where it cannot be decoded, is of a kind that `image_header` does not know, or has too many pixels. What is
    transparent becomes white. Of an animation it is the first frame.
    """
    header = image_header(data)
    if header is None or header.width * header.height > MAX_PIXELS:
        return None
    image_module = require("PIL.Image", "interleave")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow about odd files; the guard's own warning is below our bound
            with image_module.open(io.BytesIO(data), formats=[kind.upper() for kind in KINDS]) as image:
                if image.width * image.height > MAX_PIXELS:
                    return None
                image.draft(mode, (4 * size[0], 4 * size[1]))  # JPEG is decoded at an eighth where that will do
                if "A" in image.getbands() or "transparency" in image.info:
                    whole = image.convert("RGBA")
                    image = image_module.new("RGBA", whole.size, (255, 255, 255, 255))
                    image.alpha_composite(whole)
                found = image.convert(mode).resize(size, image_module.Resampling.BOX)
                return np.asarray(found)
    except MemoryError:
        raise
    except Exception:  # Pillow's readers raise whatever their arithmetic on hostile bytes leads to
        return None
