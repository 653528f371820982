"""One request, bounded in time and size and guarded in where it connects. Redirects of pages are not followed: the
crawler queues their target, so that every hop passes the same canonical form, robots, politeness and `seen` checks."""

from __future__ import annotations

import asyncio
import email.utils
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bloomery.core.errors import DataError, WebError, require
from bloomery.web.coding import Decoder, TooLargeError
from bloomery.web.guard import AddressRefusedError, Guard
from bloomery.web.urls import resolve

HTML_TYPES = ("text/html", "application/xhtml+xml")
MAX_BACKOFF = 60.0  # seconds between retries that the crawler chooses itself
MAX_RETRY_AFTER = 600.0  # seconds; a server asking for more is not waited for
MAX_REDIRECTS = 5  # that `Fetcher.follow` follows, as RFC 9309 §2.3.1.2 asks for robots.txt
_SNIFF = 1024  # bytes looked at to tell text from binary
_BINARY = bytes([*range(0x00, 0x09), 0x0B, *range(0x0E, 0x1B), *range(0x1C, 0x20)])  # WHATWG MIME sniffing §3
_SIGNATURES = (b"%PDF-", b"\x89PNG", b"GIF8", b"\xff\xd8\xff", b"PK\x03\x04", b"\x1f\x8b\x08", b"\x7fELF", b"RIFF")


class FetchError(WebError):
    """A request that brought no page. `kind` is what the crawl counts; `passing` ones are worth another try."""

    def __init__(self, kind: str, what: str, *, where: str, passing: bool = False, retry_after: float = 0.0) -> None:
        super().__init__(what, where=where)
        self.kind, self.passing, self.retry_after = kind, passing, retry_after


@dataclass(slots=True)
class Response:
    """An answer. `body` has its content coding undone; of a redirect only `location` is read (None: unusable)."""

    url: str
    status: int
    reason: str
    headers: list[tuple[str, str]]
    content_type: str  # media type alone, lower case
    body: bytes
    seconds: float
    redirect: bool = False
    location: str | None = None


class Fetcher:
    """An HTTP client with one connection pool; use as an async context manager."""

    def __init__(
        self,
        guard: Guard,
        user_agent: str,
        *,
        max_bytes: int = 10 << 20,
        connect_timeout: float = 10.0,
        timeout: float = 60.0,
        resolver: Any = None,
        accept: str = "text/html,application/xhtml+xml,text/plain;q=0.8,*/*;q=0.1",
    ) -> None:
        self._aiohttp = require("aiohttp", "web")
        self._guard, self._max_bytes, self._resolver = guard, max_bytes, resolver
        self._timeout = self._aiohttp.ClientTimeout(total=timeout, sock_connect=connect_timeout)
        self._headers = {
            "User-Agent": user_agent,
            "Accept": accept,
            "Accept-Encoding": "gzip, deflate, br",
        }

    async def __aenter__(self) -> Fetcher:
        self._session = self._aiohttp.ClientSession(
            connector=self._aiohttp.TCPConnector(
                limit=0,  # the crawler bounds what runs at once
                socket_factory=self._guard.socket,
                resolver=self._resolver,
                ttl_dns_cache=300,
            ),
            timeout=self._timeout,
            headers=self._headers,
            cookie_jar=self._aiohttp.DummyCookieJar(),  # no state: a page must not depend on what was fetched before
            auto_decompress=False,  # bounded and counted here
            trust_env=False,  # a proxy would connect where the guard cannot look
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, url: str, types: Sequence[str] = (), head_bytes: int = 0) -> Response:
        """One GET of a canonical URL. Raises `FetchError`, for statuses of 400 and more too (`http_404`, …).

        `types` are the media types accepted, all when empty. With `head_bytes`, a body is cut there instead of being
        refused for its size.
        """
        started = time.monotonic()
        try:
            self._guard.check_url(url)
            async with self._session.get(
                _encoded(self._aiohttp, url), allow_redirects=False, raise_for_status=False
            ) as answer:
                response = Response(
                    url,
                    answer.status,
                    answer.reason or "",
                    [(k.decode("latin-1"), v.decode("utf-8", "replace")) for k, v in answer.raw_headers],
                    _media_type(answer.headers.get("Content-Type", "")),
                    b"",
                    0.0,
                )
                if answer.status in (301, 302, 303, 307, 308):
                    response.redirect = True
                    response.location = resolve(url, answer.headers.get("Location", ""))
                    return response
                _check_status(response, answer.headers.get("Retry-After", ""))
                if types and response.content_type and response.content_type not in types:
                    raise FetchError("content_type", f"{response.content_type} is not crawled", where=url)
                response.body = await _read(answer, head_bytes or self._max_bytes, bool(head_bytes), url)
                response.seconds = time.monotonic() - started
        except FetchError:
            raise
        except WebError as error:
            raise FetchError("refused_address", error.what, where=url) from error
        except Exception as error:
            raise _explain(self._aiohttp, error, url) from error
        if types:
            check_text(response)
        return response

    async def follow(self, url: str, retries: int, head_bytes: int = 0) -> Response | None:
        """A GET for the crawl's own needs (robots.txt, sitemaps): up to five redirects and `retries` further tries.

        None where the server has no such thing. Raises `FetchError`.
        """
        attempt = 0
        for _ in range(1 + MAX_REDIRECTS):
            while True:
                try:
                    response = await self.get(url, head_bytes=head_bytes)
                    break
                except FetchError as error:
                    if re.fullmatch(r"http_4(?!29)\d\d", error.kind):
                        return None
                    if not error.passing or attempt >= retries or error.retry_after > MAX_RETRY_AFTER:
                        raise
                    await asyncio.sleep(backoff(attempt, error.retry_after))
                    attempt += 1
            if not response.redirect:
                return response
            if response.location is None:
                return None
            url = response.location
        return None


def backoff(attempt: int, retry_after: float = 0.0) -> float:
    """Seconds until the next try: 1, 2, 4, … with jitter, or what the server asked for if that is longer."""
    return max(min(2.0**attempt, MAX_BACKOFF) * random.uniform(0.75, 1.25), retry_after)


def check_text(response: Response) -> None:
    """Raise `FetchError` where a body declared as text is something else."""
    head = response.body[:_SNIFF]
    if head.startswith(_SIGNATURES):
        raise FetchError("binary", f"binary data served as {response.content_type or 'text'}", where=response.url)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):  # UTF-16 is full of zero bytes
        return
    if len(head) - len(head.translate(None, _BINARY)) > 0.01 * len(head):
        raise FetchError("binary", f"binary data served as {response.content_type or 'text'}", where=response.url)


def _encoded(aiohttp: Any, url: str) -> Any:
    from yarl import URL

    return URL(url, encoded=True)  # canonical already; yarl would only spell it its own way


def _media_type(header: str) -> str:
    return header.partition(";")[0].strip().lower()


def _check_status(response: Response, retry_after: str) -> None:
    status = response.status
    if status < 400 and status not in (204, 205, 304, 300):
        return
    raise FetchError(
        f"http_{status}",
        f"the server answered {status} {response.reason}".rstrip(),
        where=response.url,
        passing=status in (408, 425, 429) or status >= 500,
        retry_after=_retry_after(retry_after),
    )


def _retry_after(value: str) -> float:
    """Seconds of a Retry-After header in either of its spellings, 0 when absent or unreadable."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


async def _read(answer: Any, limit: int, cut: bool, url: str) -> bytes:
    """The body, decoded. The limit holds for the bytes on the wire and for the bytes they expand to."""
    coding = answer.headers.get("Content-Encoding", "")
    length = answer.content_length
    if length is not None and length > limit and not cut:
        raise FetchError("too_large", f"{length:,} bytes announced, the limit is {limit:,}", where=url)
    if not coding and length is not None and length <= limit:
        return bytes(await answer.read())  # the HTTP parser holds the body to its announced length
    chunks, wire = [], 0
    try:
        decoder = Decoder(coding, limit)
        async for chunk in answer.content.iter_any():
            wire += len(chunk)
            chunks.append(decoder.decode(chunk))
            if wire > limit:
                raise TooLargeError(limit)
        decoder.finish()
    except TooLargeError as error:
        if not cut:
            raise FetchError("too_large", error.what, where=url) from error
        chunks.append(error.part)
    except DataError as error:
        raise FetchError("broken_encoding", error.what, where=url) from error
    return b"".join(chunks)


def _explain(aiohttp: Any, error: Exception, url: str) -> FetchError:
    """The client library's errors as one of ours."""
    inner = getattr(error, "os_error", None)
    if isinstance(inner, AddressRefusedError):
        return FetchError("refused_address", str(inner), where=url)
    if isinstance(error, (asyncio.TimeoutError, aiohttp.ServerTimeoutError)):
        return FetchError("timeout", "timed out", where=url, passing=True)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return FetchError("dns", "the host name does not resolve", where=url, passing=True)
    if isinstance(error, aiohttp.ClientSSLError):
        return FetchError("tls", f"TLS: {inner or error}", where=url)
    if isinstance(error, aiohttp.ClientConnectorError):
        return FetchError("connect", f"cannot connect: {inner or error}", where=url, passing=True)
    if isinstance(error, (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
        return FetchError("broken_transfer", _one_line(error) or "the connection broke off", where=url, passing=True)
    if isinstance(error, aiohttp.InvalidURL):
        return FetchError("bad_url", _one_line(error), where=url)
    if isinstance(error, (aiohttp.ClientError, ValueError, OSError, AssertionError)):
        return FetchError("protocol", _one_line(error) or type(error).__name__, where=url)
    raise error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
