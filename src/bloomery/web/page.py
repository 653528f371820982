"""One fetched page, as the crawler hands it on and as it is read back from a WARC or ARC file."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from bloomery.web.encoding import decode


@dataclass
class Page:
    """A page: its canonical URL, the answer's status and headers, and the body without transfer or content coding."""

    url: str
    status: int
    content_type: str  # media type without parameters, lower case, "" when not said
    body: bytes
    date: str = ""  # when it was fetched, ISO 8601 in UTC
    headers: list[tuple[str, str]] = field(default_factory=list)

    def header(self, name: str) -> str:
        """The first header of this name, any case, or ""."""
        name = name.lower()
        return next((value for key, value in self.headers if key.lower() == name), "")

    @cached_property
    def html(self) -> str:
        """The body as text; bytes that are invalid in the page's encoding become U+FFFD."""
        return decode(self.body, self.header("Content-Type"))[0]
