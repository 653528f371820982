"""Bans by address, and the removal of addresses from text."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from bloomery.core.errors import ConfigError, DataError, nearest
from bloomery.corpus.documents import texts, with_texts
from bloomery.corpus.steps import Step, drop

MATCHES = ("domain", "substring", "word")


@dataclass(frozen=True)
class UrlBan(Step):
    """Drop a page whose URL holds at least `num_banned_substrs` different entries of the ban list.

    Args:
        banlist: the entries, or a text file with one on each line.
        match: "domain" compares the host, "substring" looks anywhere, "word" between word boundaries.
        ignore_chars: strings deleted from the URL first, such as "-" and ".".
        case_sensitive: otherwise both sides are taken in lower case.
        strict_reference: the host as the reference takes it: with user and port, none without a scheme, and with
            `ignore_chars` deleted wherever they stand, so that "www.a.com" becomes ".a.com" and passes a ban of
            "a.com". By default a leading "www." goes from both sides, and the host is what a browser would ask.
    """

    banlist: tuple[str, ...] | Path
    match: Literal["domain", "substring", "word"] = "substring"
    num_banned_substrs: int = 1
    ignore_chars: tuple[str, ...] = ()
    case_sensitive: bool = False
    strict_reference: bool = False

    def __post_init__(self) -> None:
        if self.match not in MATCHES:
            raise ConfigError(f"match={self.match!r}", where="UrlBan", fix=nearest(self.match, MATCHES))
        if self.num_banned_substrs < 1:
            raise ConfigError(f"num_banned_substrs={self.num_banned_substrs}", where="UrlBan", fix="1 or more")

    @property
    def reads(self) -> tuple[str, ...]:
        """The address."""
        return ("url",)

    @property
    def name(self) -> str:
        """Several bans stand in one pipeline; the report tells them apart by what they match."""
        return f"UrlBan[{self.match}{f' x{self.num_banned_substrs}' if self.num_banned_substrs > 1 else ''}]"

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the pages with a banned address; one without an address is kept."""
        urls = batch.column("url").to_pylist()
        return drop(batch, [self.hits(url or "") >= self.num_banned_substrs for url in urls], f"banned {self.match}")

    def hits(self, url: str) -> int:
        """How many different entries of the ban list the URL holds."""
        if self.match == "domain":
            url = self._host(url)
        url = url if self.case_sensitive else url.lower()
        for ignored in self.ignore_chars if self.match != "domain" or self.strict_reference else ():
            url = url.replace(ignored, "")
        if self.match == "domain":
            return int(url in self._entries)
        return len(set(self._pattern.findall(url)))

    def _host(self, url: str) -> str:
        try:
            if self.strict_reference:
                return urlsplit(url).netloc
            return (urlsplit(url if "//" in url else f"//{url}").hostname or "").removeprefix("www.")
        except ValueError:  # not an address at all, such as "http://[oops"
            return ""

    @functools.cached_property
    def _entries(self) -> frozenset[str]:
        entries = read_list(self.banlist) if isinstance(self.banlist, Path) else self.banlist
        entries = tuple(entry if self.case_sensitive else entry.lower() for entry in entries if entry)
        if self.match == "domain" and not self.strict_reference:
            entries = tuple(entry.removeprefix("www.") for entry in entries)
        if not entries:
            raise ConfigError("an empty ban list", where="UrlBan", fix="leave the step out")
        return frozenset(entries)

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        # Longest first: of two entries that begin alike the longer one is found, as in the reference's trie.
        choices = "|".join(map(re.escape, sorted(self._entries, key=lambda entry: (-len(entry), entry))))
        pattern = rf"\b(?:{choices})\b" if self.match == "word" else f"(?:{choices})"
        return re.compile(pattern, 0 if self.case_sensitive else re.IGNORECASE)

    def fingerprint(self) -> dict[str, Any]:
        """The entries themselves, not the name of their file."""
        return {**super().fingerprint(), "banlist": sorted(self._entries)}


@dataclass(frozen=True)
class UrlRemoval(Step):
    """Delete web addresses from the text, with up to ten white-space characters before each.

    An address is up to 256 of its characters, a dot, a top-level domain, and what follows; or an IPv4 address. `tlds`
    is a file with one top-level domain on each line; by default all of the internet are taken.

    By default letters of either case count. `strict_reference` deletes addresses with lower-case domains only, and
    only from a page that begins with the letters of some domain ("se", "com", …), which is what the reference does.

    A page without text is dropped. The time is linear in the text: only the characters around a dot that a domain
    follows are looked at.
    """

    tlds: Path | None = None
    strict_reference: bool = False

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The text without addresses."""
        before = texts(batch).to_pylist()
        after = [self.without_urls(text) for text in before]
        if after != before:
            batch = with_texts(batch, after)
        return drop(batch, [not text for text in after], "no text")

    def without_urls(self, text: str) -> str:
        """The text without addresses."""
        if not self.strict_reference or self._begins_with_tld(text):
            text = self._cut(text)
        return IPV4.sub("", text) if IPV4_HINT.search(text) else text

    def _begins_with_tld(self, text: str) -> bool:
        head = text[: self._longest].lower()
        return any(head[:size] in self._tlds for size in range(1, len(head) + 1))

    def _cut(self, text: str) -> str:
        kept, done = [], 0
        for found in (STRICT_DOMAIN if self.strict_reference else DOMAIN).finditer(text):
            dot = found.start()
            if dot < done:
                continue
            wide = 0 if found[1] else self._wide_domain(text, dot + 1)
            if not wide and not (found[1] and self._is_domain(found[1])):
                continue
            body = _body(text, dot, done)
            if body == dot:
                continue
            end = _rest(text, dot + 1 + wide)
            if self._wide:  # the domain is what follows the last dot: "a.com.рф"
                last = BODY.match(text, body, body + BODY_LENGTH + 1).end()  # type: ignore[union-attr]
                if last > dot + 1 and text[last - 1] == "." and (wide := self._wide_domain(text, last)):
                    end = _rest(text, last + wide)
            kept.append(text[done : _with_scheme_and_space(text, body, done)])
            done = end
        return "".join([*kept, text[done:]]) if done else text

    def _wide_domain(self, text: str, start: int) -> int:
        """Length of the domain in other letters that stands at `start`, 0 for none."""
        fitting = (tld for tld in self._wide if text.startswith(tld, start) and BOUNDARY.match(text, start + len(tld)))
        return max(map(len, fitting), default=0)

    def _is_domain(self, label: str) -> bool:
        """Whether the characters after a dot begin with a top-level domain that a word boundary follows."""
        head = label[: self._longest + 1] if self.strict_reference else label[: self._longest + 1].lower()
        ends = [at for at in range(1, len(head)) if head[at] == "-" and head[at - 1] != "-"]
        if len(label) <= self._longest:
            ends.append(len(label))
        return any(head[:end] in self._tlds for end in ends)

    @functools.cached_property
    def _tlds(self) -> frozenset[str]:
        return frozenset(read_list(self.tlds)) if self.tlds else all_tlds()

    @functools.cached_property
    def _wide(self) -> tuple[str, ...]:
        return tuple(sorted(tld for tld in self._tlds if not tld.isascii()))

    @functools.cached_property
    def _longest(self) -> int:
        return max(map(len, self._tlds))

    def fingerprint(self) -> dict[str, Any]:
        """The domains themselves, not the name of their file."""
        return {**super().fingerprint(), "tlds": sorted(self._tlds)}


# The label after a dot up to a word boundary ("xn--…" and what a hyphen follows are looked at piece by piece), or other
# letters.
STRICT_DOMAIN = re.compile(r"\.(?:([a-z][a-z0-9]*(?:-+[a-z0-9]+)*)\b|(?=[^\x00-\x7f]))")
DOMAIN = re.compile(STRICT_DOMAIN.pattern, re.IGNORECASE)
BOUNDARY = re.compile(r"\b")
BODY = re.compile(r"[-a-zA-Z0-9@:%._+~#=]*")
REST = re.compile(r"[-a-zA-Z0-9()@:%_+.~#?&/=]*")
IPV4 = re.compile(
    r"\s{0,10}\b(?:(?:https?|ftp)://)?(?:[0-2]?[0-9]{1,2}\.){3}[0-2]?[0-9]{1,2}[-a-zA-Z0-9()@:%_+.~#?&/=]*"
)
IPV4_HINT = re.compile(r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")
SCHEMES = ("https://", "http://", "ftp://")
BODY_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-@:%._+~#="
BODY_LENGTH, SPACES = 256, 10


def _body(text: str, dot: int, done: int) -> int:
    """Where the characters of an address that end at `dot` begin, at most 256 before it."""
    start = max(done, dot - BODY_LENGTH)
    return start + len(text[start:dot].rstrip(BODY_CHARACTERS))


def _rest(text: str, start: int) -> int:
    """Where the address ends whose domain begins or ends at `start`."""
    return REST.match(text, start).end()  # type: ignore[union-attr]  # matches the empty string, too


def _with_scheme_and_space(text: str, begin: int, done: int) -> int:
    for scheme in SCHEMES:
        if begin - len(scheme) >= done and text.startswith(scheme, begin - len(scheme)):
            begin -= len(scheme)
            break
    for _ in range(SPACES):
        if begin == done or not text[begin - 1].isspace():
            break
        begin -= 1
    return begin


@dataclass(frozen=True)
class CollapseNewlines(Step):
    """No more than `max_consecutive` line ends in a row."""

    max_consecutive: int = 2

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The text with longer runs cut."""
        before = texts(batch)
        if not pc.any(pc.match_substring(before, "\n" * (self.max_consecutive + 1)), min_count=0).as_py():
            return batch
        pattern = rf"\n{{{self.max_consecutive + 1},}}"
        return with_texts(batch, pc.replace_substring_regex(before, pattern, "\n" * self.max_consecutive))


def read_list(path: Path) -> tuple[str, ...]:
    """The lines of a text file."""
    try:
        return tuple(Path(path).read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot be read: {error}", where=path, fix="a text file with one entry on each line"
        ) from error


@functools.cache
def all_tlds() -> frozenset[str]:
    """The top-level domains of the internet, those with other letters in their ASCII form."""
    return frozenset(files("bloomery.corpus.refinedweb").joinpath("tlds.txt").read_text(encoding="ascii").split())
