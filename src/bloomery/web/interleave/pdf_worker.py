"""The child process in which PDFium runs: PDF bytes in on stdin, lines of text and images out on stdout.

PDFium is native code that reads files from strangers. It runs here, behind limits on memory and, in the parent, on
time: a file that crashes it or never ends costs one file. The script imports nothing of the rest of the library, so
that a child starts in a tenth of a second.

A message is two lengths (8 bytes each, big-endian), a JSON header and raw bytes. Coordinates are points from the top
left corner of the page; a page whose text runs in another direction is turned first.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from math import pi
from typing import IO, Any

SPLIT = 0.9  # font sizes of white space within a line that separate two segments: a gutter, not a space
HYPHENS = (0x2, 0xFFFE)  # what PDFium makes of a hyphen at the end of a line
FORM_DEPTH = 4  # forms within forms
RENDER_PIXELS = 1_200  # longer side of a page made into an image


class Refused(Exception):
    """The file is left out; the message is the reason."""


def main() -> None:
    """Answer requests until stdin ends."""
    memory = int(sys.argv[1])
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # not a Unix, or a lower limit is in force: the parent's limit on time remains
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the library prints must not end up between our bytes
    while (request := read_message(sys.stdin.buffer)) is not None:
        header, body = request
        try:
            answer, blobs = (render if header["do"] == "render" else read)(body, header)
        except Refused as refusal:
            answer, blobs = {"refused": str(refusal)}, []
        except Exception as error:  # of the binding: one file must not end the run
            reason = f"cannot be read: {type(error).__name__}: {error}"[:200]
            answer, blobs = {"refused": "needs too much memory" if _out_of_memory(error) else reason}, []
        write_message(out, answer, b"".join(blobs))


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: in Python, in a call to the system, or while a shared library was loaded."""
    return isinstance(error, MemoryError) or "annot allocate memory" in str(error)


def read_message(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """The next message, or None at the end."""
    lengths = stream.read(16)
    if len(lengths) < 16:
        return None
    header, body = struct.unpack(">QQ", lengths)
    return json.loads(stream.read(header)), stream.read(body)


def write_message(stream: IO[bytes], header: dict[str, Any], body: bytes) -> None:
    """Send a message."""
    text = json.dumps(header).encode()
    stream.write(struct.pack(">QQ", len(text), len(body)) + text)
    stream.write(body)
    stream.flush()


# --------------------------------------------------------------------------------------------------------- requests


def read(data: bytes, limits: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Pages of segments and images; `limits` are the fields of `pdf.Limits`."""
    document = _open(data)
    count = len(document)
    if count == 0:
        raise Refused("has no pages")
    if count > limits["pages"]:
        raise Refused(f"has more than {limits['pages']} pages")
    pages, blobs, characters, images = [], [], 0, 0
    for number in range(count):
        page = document[number]
        width, height = page.get_size()
        if page.get_rotation() % 180:
            width, height = height, width  # of the page as it was written, which is what coordinates refer to
        left, bottom = page.get_mediabox()[:2]
        text = page.get_textpage()
        characters += text.count_chars()
        if characters > limits["characters"]:
            raise Refused(f"has more than {limits['characters']:,} characters")
        segments = list(_segments(text.raw))
        turn, upright = _turn(segments, left, bottom, width, height)
        found = []
        for image, box in _images(page, limits["objects"]):
            size, data_ = _image(image, limits) if images < limits["images"] else (image.get_px_size(), None)
            images += 1
            found.append({"box": upright(box), "size": size, "bytes": len(data_ or b"")})
            blobs.append(data_ or b"")
            limits["image_bytes"] -= len(data_ or b"")
        pages.append(
            {
                "size": (height, width) if turn in (1, 3) else (width, height),
                "segments": [(s["text"], *upright(s["box"]), s["size"]) for s in segments if s["turn"] == turn],
                "images": found,
            }
        )
        text.close()
        page.close()
    document.close()
    return {"pages": pages}, blobs


def render(data: bytes, limits: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """The first page as PNG: a figure that a paper includes as a PDF."""
    document = _open(data)
    if len(document) == 0:
        raise Refused("has no pages")
    page = document[0]
    width, height = page.get_size()
    if not (0 < width < 20_000 and 0 < height < 20_000):
        raise Refused("has a page of impossible size")
    image = page.render(scale=min(RENDER_PIXELS / max(width, height), 4.0)).to_pil()
    return {"size": image.size}, [_encoded(image, "PNG")]


def _open(data: bytes) -> Any:
    import pypdfium2

    try:
        return pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if "assword" in str(error):
            raise Refused("is encrypted") from error
        raise Refused("is damaged, or is none") from error


# ------------------------------------------------------------------------------------------------------------- text


def _segments(text: Any) -> Iterator[dict[str, Any]]:
    """Stretches of characters on one line without a gap as wide as a gutter: text, box (page space), size, turn."""
    import pypdfium2.raw as raw

    count, box = raw.FPDFText_CountChars(text), raw.FS_RECTF()
    units: list[int] = []
    bounds = [0.0, 0.0, 0.0, 0.0]
    size, turn = 0.0, 0

    def done() -> dict[str, Any] | None:
        content = struct.pack(f"<{len(units)}H", *units).decode("utf-16-le", "replace")
        return {"text": content, "box": tuple(bounds), "size": size, "turn": turn} if content.strip() else None

    for i in range(count):
        code = raw.FPDFText_GetUnicode(text, i)
        blank = code in (0x20, 0xA0, 0x9)
        if code in (0, 0xD, 0xA) or blank:
            if code in (0xD, 0xA) and units:
                if found := done():
                    yield found
                units = []
            elif blank and units:
                units.append(0x20)
            continue
        if not raw.FPDFText_GetLooseCharBox(text, i, ctypes.byref(box)):
            continue
        left, right = sorted((box.left, box.right))
        low, high = sorted((box.bottom, box.top))
        if units and not _continues(bounds, (left, low, right, high), size, turn):
            if found := done():
                yield found
            units = []
        if not units:
            bounds = [left, low, right, high]
            turn = -round(max(raw.FPDFText_GetCharAngle(text, i), 0.0) / (pi / 2)) % 4  # PDFium's go clockwise
            size = (right - left if turn % 2 else high - low) or 1.0  # the height of a line, whatever the font says
        else:
            bounds = [min(bounds[0], left), min(bounds[1], low), max(bounds[2], right), max(bounds[3], high)]
        units.extend(_units(0x2D if code in HYPHENS else code))
    if units and (found := done()):
        yield found


def _continues(line: list[float], char: tuple[float, float, float, float], size: float, turn: int) -> bool:
    """Whether a character belongs to the line: beside it without a wide gap, and at its height."""
    along, across = (0, 1) if turn % 2 == 0 else (1, 0)
    gap = max(char[along] - line[along + 2], line[along] - char[along + 2])
    overlap = min(line[across + 2], char[across + 2]) - max(line[across], char[across])
    thinner = min(line[across + 2] - line[across], char[across + 2] - char[across])
    return gap <= SPLIT * size and overlap >= 0.4 * thinner


def _units(code: int) -> tuple[int, ...]:
    if code < 0x10000:
        return (code,)
    code -= 0x10000
    return 0xD800 + (code >> 10 & 0x3FF), 0xDC00 + (code & 0x3FF)


def _turn(
    segments: list[dict[str, Any]], left: float, bottom: float, width: float, height: float
) -> tuple[int, Callable[[tuple[float, ...]], tuple[float, ...]]]:
    """The direction of most characters in quarter turns, and the function from page space to upright, top-down boxes.

    Text in another direction (a stamp in the margin, the label of an axis) is not part of the reading order.
    """
    votes = Counter[int]()
    for segment in segments:
        votes[segment["turn"]] += len(segment["text"])
    turn = votes.most_common(1)[0][0] if votes else 0

    def upright(box: tuple[float, ...]) -> tuple[float, ...]:
        x0, y0, x1, y1 = box[0] - left, box[1] - bottom, box[2] - left, box[3] - bottom
        turned = (
            (x0, height - y1, x1, height - y0),
            (y0, x0, y1, x1),  # text runs up: its top is on the left
            (width - x1, y0, width - x0, y1),
            (height - y1, width - x1, height - y0, width - x0),  # text runs down
        )[turn]
        return tuple(round(value, 2) for value in turned)

    return turn, upright


# ----------------------------------------------------------------------------------------------------------- images


def _images(page: Any, most: int) -> Iterator[tuple[Any, tuple[float, ...]]]:
    """The image objects of a page with their boxes in page space, those inside forms too."""
    import pypdfium2.raw as raw

    for number, thing in enumerate(page.get_objects(max_depth=FORM_DEPTH)):
        if number >= most:
            raise Refused(f"has more than {most:,} objects on a page")
        if thing.type != raw.FPDF_PAGEOBJ_IMAGE:
            continue
        box, form = thing.get_bounds(), thing.container
        while form is not None:
            corners = [form.get_matrix().on_point(x, y) for x in box[0::2] for y in box[1::2]]
            xs, ys = zip(*corners, strict=True)
            box, form = (min(xs), min(ys), max(xs), max(ys)), form.container
        yield thing, box


def _image(image: Any, limits: dict[str, Any]) -> tuple[tuple[int, int], bytes | None]:
    """Size in pixels and the encoded image; None where it is too small or too large to be wanted, or is broken."""
    import pypdfium2

    width, height = image.get_px_size()
    if min(width, height) < limits["min_pixels"] or width * height > limits["max_pixels"]:
        return (width, height), None
    if limits["image_bytes"] <= 0:
        return (width, height), None
    try:
        if image.get_filters() == ["DCTDecode"]:  # a JPEG as it is
            return (width, height), bytes(image.get_data())
        return (width, height), _encoded(image.get_bitmap().to_pil(), "PNG")
    except (pypdfium2.PdfiumError, ValueError, OSError):
        return (width, height), None


def _encoded(image: Any, form: str) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB" if image.mode not in ("L", "1", "RGBA") else image.mode).save(buffer, form)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
