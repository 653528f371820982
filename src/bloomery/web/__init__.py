"""Crawl and extract: frontier, polite guarded fetching, WARC in and out, HTML to text, pages as corpus documents."""

from __future__ import annotations

from bloomery.web.archive import ReadStats, iterate_pages
from bloomery.web.config import CrawlConfig
from bloomery.web.crawl import Crawler, crawl
from bloomery.web.documents import read_documents
from bloomery.web.extract import full_text, links, main_text, title
from bloomery.web.fetch import Fetcher, FetchError
from bloomery.web.frontier import Frontier, Link, PoliteFrontier
from bloomery.web.guard import Guard
from bloomery.web.page import Page
from bloomery.web.report import CrawlReport
from bloomery.web.urls import canonical, host_of, resolve
from bloomery.web.warc import WarcWriter

__all__ = [
    "CrawlConfig", "CrawlReport", "Crawler", "FetchError", "Fetcher", "Frontier", "Guard", "Link", "Page",
    "PoliteFrontier", "ReadStats", "WarcWriter", "canonical", "crawl", "full_text", "host_of",
    "iterate_pages", "links", "main_text", "read_documents", "resolve", "title",
]  # fmt: skip
