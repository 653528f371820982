"""Documents of text and images in their original order: parts, layouts of the published sets, a page to read them."""

from __future__ import annotations

from bloomery.corpus.interleaved.parts import Part, aligned, from_aligned, from_parts, parts_of, token_text

__all__ = ["Part", "aligned", "from_aligned", "from_parts", "parts_of", "token_text"]
