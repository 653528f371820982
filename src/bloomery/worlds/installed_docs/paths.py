"""Where things are: paths of pages, and the paths found in a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape

from bloomery.worlds.installed_docs.scan import Module

HREF = re.compile(r'<a [^>]*?href="([^"#?]*)')


def page_links(html: str) -> Iterator[str]:
    """Site paths that a page links to, without anchors and queries, in page order."""
    for match in HREF.finditer(html):
        if match[1].startswith("/"):
            yield unescape(match[1])


def module_path(name: str) -> str:
    """Path of a module's page."""
    return f"/docs/{name.replace('.', '/')}/"


def item_path(name: str) -> str:
    """Path of a class or function page."""
    return f"/docs/{name.replace('.', '/')}.html"


def source_path(module: Module) -> str:
    """Path of a module's code listing."""
    return f"/source/{module.name.replace('.', '/')}{'/__init__' if module.package else ''}.html"
