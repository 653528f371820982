"""Addresses, names and sizes of the images of a page.

`reference_info` gives OBELICS' own keys and values (arXiv 2306.16527; huggingface/OBELICS, `simplification_utils`),
by its rules: relative addresses are pasted to `https://host/`, not resolved. `image_info` is what this library does
by default: addresses are resolved (RFC 3986, with `<base>`), commas are allowed in them, and of the list in `srcset`
the largest candidate is taken.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from bloomery.web.urls import resolve

Attributes = Mapping[str, str | None]

# Where pages keep the address of an image, in the order in which they are tried.
SOURCES = (
    "src", "data-src", "data-src-fg", "data-scroll-image", "srcset", "data-lateloadsrc", "data-img-src",
    "data-original", "data-gt-lazy-src", "data-lazy", "data-lazy-src", "src2",
)  # fmt: skip
LISTS = ("srcset", "data-srcset")
MAX_URL = 2048  # characters; longer ones are data
MAX_SRCSET = 20_000  # characters of a list of candidates that are looked at
MAX_TEXT = 2000  # characters of an alternative text that are kept

_QUOTES = re.compile('[”"<>]')
_VALID = re.compile(
    r"^(?:http|ftp)s?://"
    r"(?:(?:[A-Z0-9](?:[A-Z0-9-]{0,61}[A-Z0-9])?\.)+(?:[A-Z]{2,6}\.?|[A-Z0-9-]{2,}\.?))"
    r"(?:/?|[/?]\S+)$",
    re.IGNORECASE,
)
_QUERY = re.compile(r"\?[A-Za-z0-9]+=")
_LENGTH = re.compile(r"\s*([0-9]{1,6})(?:\.[0-9]{0,6})?\s*(px|%)?\s*")
_CANDIDATES = re.compile(r",\s|(?<=[0-9][wx]),")  # a comma inside an address is followed by neither
_DESCRIPTOR = re.compile(r"([0-9]{1,6}(?:\.[0-9]{0,6})?)[wx]")


def image_source(attributes: Attributes) -> str | None:
    """The first address in `SOURCES` without comma and space: the reference's choice."""
    for name in SOURCES:
        value = attributes.get(name)
        if value and "," not in value and " " not in value:
            return value
    return None


def reference_info(attributes: Attributes, page_url: str) -> dict[str, Any] | None:
    """OBELICS' metadata of an image, or None where it has no valid address."""
    source = image_source(attributes)
    if not source:
        return None
    address = source if source.startswith("http") else absolute(page_url, source)
    if not is_url_valid(address):
        return None
    info: dict[str, Any] = {"document_url": page_url, "unformatted_src": source, "src": address}
    if name := format_filename(address):
        info["formatted_filename"] = name
    if alt := attributes.get("alt"):
        info["alt_text"] = alt
    for side in ("width", "height"):
        value = attributes.get(side)
        if value is not None:
            try:
                info[f"rendered_{side}"] = format_image_size(value)
            except ValueError:
                continue  # no size at all, such as "auto;"
    return info


def absolute(page_url: str, path: str) -> str:
    """The reference's absolute address of a relative one: dots are deleted, the page's own path plays no part."""
    if path.startswith("//"):
        return "http:" + path
    if "./" in path:
        path = re.sub(r"\.+/", "", path)
    return "https://" + urlsplit(page_url).netloc + (path if path.startswith("/") else "/" + path)


def is_url_valid(url: str) -> bool:
    """Whether this is http, https or ftp, with a host that has a dot; long addresses are not."""
    return len(url) <= MAX_URL and _VALID.match(url) is not None


def format_image_size(size: str) -> int | str:
    """Pixels, or a percentage as a string.

    Raises:
        ValueError: it is neither.
    """
    size = _QUOTES.sub("", size)[:64]
    try:
        return int(size)
    except ValueError:
        if "px" in size:
            return int(re.sub("[px;]", "", size))
        if "%" in size:
            return size.strip()
        if "." in size:
            return int(float(size))
        if size in ("full-width", "auto"):
            return "100%"
        raise


def format_filename(url: str) -> str:
    """The words of the file's name, without digits and sizes; "" where there are none."""
    name = os.path.split(url)[1].split(".")[0]
    if _QUERY.search(name):
        return ""
    name = re.sub(r"[_-]", " ", name)
    name = re.sub(r"%2[0]*", " ", name)
    name = re.sub(r"[0-9]+x[0-9]+", "", name)
    name = re.sub(r"[0-9]+", " ", name)
    name = re.sub(r" {2,}", " ", name)
    for mark in ("\n", "+", "%B", "%"):
        name = name.replace(mark, " ")
    name = name.strip()
    return name if len(name) > 1 else ""


def image_info(
    attributes: Attributes, base: str, fallback: Attributes | None = None
) -> tuple[str, dict[str, Any]] | None:
    """The canonical address of an image and what the page says about it, or None where there is no address.

    `base` is the canonical address that relative ones are resolved against; `fallback` are the attributes of a
    `<source>` beside the image. Keys: `alt`, `filename`, `rendered_width` and `rendered_height` (pixels, or "50%").
    """
    address = _address(attributes, base) or (_address(fallback, base) if fallback else None)
    if address is None:
        return None
    info: dict[str, Any] = {}
    if alt := " ".join((attributes.get("alt") or "")[:MAX_TEXT].split()):
        info["alt"] = alt
    if name := unquote(address.partition("?")[0].rpartition("/")[2])[:200]:
        info["filename"] = name
    for side in ("width", "height"):
        found = _LENGTH.fullmatch((attributes.get(side) or "")[:32])
        if found:
            info[f"rendered_{side}"] = f"{found[1]}%" if found[2] == "%" else int(found[1])
    return address, info


def _address(attributes: Attributes, base: str) -> str | None:
    """The first address that leads somewhere; images inside the page (`data:`) have none."""
    for name in SOURCES:
        value = (attributes.get(name) or "").strip()
        if not value or value[:5].lower() == "data:":
            continue
        if name in LISTS:
            value = largest_candidate(value)
        if 0 < len(value) <= MAX_URL and (found := join(base, value.replace(" ", "%20"))):
            return found
    return None


def join(base: str, link: str) -> str | None:
    """The canonical address of `link` on the page `base`; on a page that is a file, links lead to files."""
    if base.startswith("http"):
        return resolve(base, link)
    with contextlib.suppress(ValueError):  # such as "//[oops"
        return urljoin(base, link)
    return None


def largest_candidate(srcset: str) -> str:
    """The address of the largest width or density in a `srcset` (HTML standard §4.8.4.2.1), or ""."""
    best, largest = "", -1.0
    for candidate in _CANDIDATES.split(srcset[:MAX_SRCSET]):
        address, _, descriptor = candidate.strip(" \t\r\n\f,").partition(" ")
        found = _DESCRIPTOR.fullmatch(descriptor.strip())
        size = float(found[1]) if found else 1.0
        if size > largest and address and address[:5].lower() != "data:":
            best, largest = address, size
    return best
