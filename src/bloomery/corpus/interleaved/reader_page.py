"""A page that shows interleaved documents as a reader would see them: text and images in their order.

One HTML file that needs nothing from outside. Everything from documents is escaped; images are drawn small and anew,
so that no byte of theirs reaches a browser unread; sizes are bounded.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import Any

import jinja2
import pyarrow as pa

from bloomery.core.errors import MissingExtraError, require
from bloomery.corpus.interleaved.parts import Part, parts_of

MAX_TEXT = 20_000  # characters of a document that are shown
MAX_IMAGES = 40  # of a document
MAX_PIXELS = 50_000_000  # of an image, looked at before it is decoded
THUMBNAIL = 360  # longer side, in pixels

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ documents|length }} documents</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 17px/1.6 Georgia, serif; max-width: 44rem; margin: 2rem auto; padding: 0 1rem; }
header, figcaption, summary, nav { font: 13px/1.5 system-ui, sans-serif; }
nav ol { columns: 2; padding-left: 1.6rem; }
article { border-top: 3px solid #c2501d; margin-top: 3rem; padding-top: .6rem; }
header { overflow-wrap: anywhere; opacity: .8; margin-bottom: 1rem; }
p { white-space: pre-wrap; overflow-wrap: anywhere; margin: .8rem 0; }
figure { margin: 1.2rem 0; text-align: center; }
img { max-width: 100%; border: 1px solid var(--line); }
.absent { border: 1px dashed var(--line); background: var(--soft); padding: 1.2rem; }
figcaption { opacity: .7; overflow-wrap: anywhere; }
</style></head><body>
<nav><b>{{ documents|length }} documents</b><ol>
{% for d in documents %}<li><a href="#d{{ loop.index }}">{{ d.title }}</a>, {{ d.words }} words, {{ d.images }} images
{% endfor %}</ol></nav>
{% for d in documents %}<article id="d{{ loop.index }}"><header><b>{{ d.id }}</b><br>{{ d.url }}</header>
{% for part in d.parts %}{% if part.text is not none %}<p>{{ part.text }}</p>
{% else %}<figure>{% if part.data %}<img src="{{ part.data }}" alt="{{ part.alt }}">
{% else %}<div class="absent">{{ part.why }}</div>{% endif %}<figcaption>{{ part.note }}</figcaption></figure>
{% endif %}{% endfor %}{% if d.cut %}<p><i>… {{ d.cut }}</i></p>{% endif %}</article>
{% endfor %}</body></html>
"""


def reader_page(batches: Iterable[pa.RecordBatch], limit: int = 20) -> str:
    """The first `limit` documents as one HTML page. Without Pillow images are named, not shown."""
    documents: list[dict[str, Any]] = []
    for batch in batches:
        names, urls = batch.column("id").to_pylist(), batch.column("url").to_pylist()
        for name, url, parts in zip(names, urls, parts_of(batch), strict=True):
            if len(documents) == limit:
                break
            documents.append(_document(name or "", url or "", parts))
        if len(documents) == limit:
            break
    return jinja2.Environment(autoescape=True, trim_blocks=True).from_string(PAGE).render(documents=documents)


def _document(name: str, url: str, parts: list[Part]) -> dict[str, Any]:
    shown: list[dict[str, Any]] = []
    characters = images = 0
    cut = ""
    for part in parts:
        if characters >= MAX_TEXT or images >= MAX_IMAGES:
            cut = f"and {len(parts) - len(shown):,} more parts"
            break
        if part.text is None:
            shown.append(_picture(part))
            images += 1
        else:
            shown.append({"text": part.text[: MAX_TEXT - characters]})
            characters += len(part.text)
            if characters > MAX_TEXT:
                cut = "the text goes on"
    title = next((part.text.strip() for part in parts if part.text and part.text.strip()), url or name)
    words = sum(len(part.text.split()) for part in parts if part.text)
    count = sum(part.is_image for part in parts)
    return {"id": name, "url": url, "title": title[:80], "words": words, "images": count, "parts": shown, "cut": cut}


def _picture(part: Part) -> dict[str, Any]:
    meta = part.meta
    size = f"{meta['width']} x {meta['height']}" if "width" in meta and "height" in meta else ""
    alt = str(meta.get("alt") or meta.get("alt_text") or "")[:300]
    note = " · ".join(piece for piece in (str(part.ref or "")[:300], size, alt) if piece)
    data = _thumbnail(part.image) if part.image else None
    why = "cannot be shown" if part.image else str(meta.get("missing") or "not fetched")
    return {"text": None, "data": data, "alt": alt, "note": note, "why": f"image: {why}"[:200]}


def _thumbnail(data: bytes) -> str | None:
    """A data: address of the image drawn small, or None where it cannot be decoded."""
    try:
        image_module = require("PIL.Image", "interleave")
    except MissingExtraError:
        return None
    try:
        image = image_module.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            return None
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "JPEG", quality=82)
    except (OSError, ValueError, SyntaxError, image_module.DecompressionBombError):
        return None
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
