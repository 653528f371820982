"""The documentation of the running Python as a real web: pages, links, questions and a server."""

from bloomery.worlds.installed_docs.paths import page_links
from bloomery.worlds.installed_docs.questions import Question
from bloomery.worlds.installed_docs.server import serve
from bloomery.worlds.installed_docs.site import InstalledDocs, Page, Statistics

__all__ = ["InstalledDocs", "Page", "Question", "Statistics", "page_links", "serve"]
