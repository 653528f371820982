"""Which links belong to a crawl."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from bloomery.core.errors import ConfigError, WebError
from bloomery.web.config import CrawlConfig
from bloomery.web.urls import canonical, host_of, hostname_and_port


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


def canonical_seeds(seeds: Iterable[str]) -> list[str]:
    """The seeds in their one spelling, sorted, each once; `ConfigError` for one that is no URL, or none at all."""
    if isinstance(seeds, str):
        seeds = [seeds]
    result = []
    for seed in seeds:
        try:
            result.append(canonical(seed))
        except WebError as error:
            raise ConfigError(f"not a usable seed: {error.what}", where=error.where, fix=error.fix) from error
    if not result:
        raise ConfigError("no seeds", fix="give at least one URL to start from")
    return sorted(set(result))


def leads_back(target: str, origin: str, redirects: Mapping[str, str]) -> bool:
    """Whether the known redirects lead from `target` to `origin`."""
    for _ in range(len(redirects) + 1):
        if target == origin:
            return True
        if target not in redirects:
            return False
        target = redirects[target]
    return False
