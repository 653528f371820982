"""Which links belong to a crawl."""

from __future__ import annotations

import re

from bloomery.web.config import CrawlConfig
from bloomery.web.urls import host_of, hostname_and_port


class Scope:
    """Hosts, domains, patterns and depth of a `CrawlConfig`. `hosts` are those of the seeds; redirects may add some."""

    def __init__(self, config: CrawlConfig, hosts: set[str]) -> None:
        self.hosts = hosts
        self._same_host, self._max_depth = config.same_host, config.max_depth
        self._domains = tuple(domain.lower().strip(".") for domain in config.allowed_domains)
        self._include = [re.compile(pattern) for pattern in config.include]
        self._exclude = [re.compile(pattern) for pattern in config.exclude]

    def too_deep(self, depth: int) -> bool:
        """Whether links at this depth are not followed."""
        return self._max_depth is not None and depth > self._max_depth

    def holds(self, url: str) -> bool:
        """Whether a canonical URL is one of the crawl's."""
        if not self._holds_host(url):
            return False
        if self._include and not any(pattern.search(url) for pattern in self._include):
            return False
        return not any(pattern.search(url) for pattern in self._exclude)

    def _holds_host(self, url: str) -> bool:
        if not self._same_host and not self._domains:
            return True
        if self._same_host and host_of(url) in self.hosts:
            return True
        name = hostname_and_port(url)[0] if self._domains else ""
        return any(name == domain or name.endswith("." + domain) for domain in self._domains)
