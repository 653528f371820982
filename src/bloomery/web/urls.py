"""One spelling for each address: canonical URLs, links resolved against their page, hosts.

Rules follow RFC 3986 §6.2 and, where the web differs from it, the WHATWG URL standard (backslashes, control
characters, IPv4 spellings). Fragments and tracking parameters go, because they do not change the page. The order of
query parameters stays: servers may give it a meaning, and signed URLs break when it changes; the near-duplicate step
of the corpus catches what remains.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from bloomery.core.errors import WebError

MAX_LENGTH = 2048  # characters; longer addresses are traps or data, not pages
DEFAULT_PORTS = {"http": "80", "https": "443"}

# Parameters that analytics and session code append to a link; the page is the same without them.
_TRACKING = re.compile(
    r"(?:utm_\w+|gclid|gclsrc|dclid|gbraid|wbraid|fbclid|msclkid|yclid|twclid|igshid|mc_cid|mc_eid|_ga|_gl|_hsenc|_hsmi"
    r"|mkt_tok|vero_id|oly_anon_id|oly_enc_id|phpsessid|jsessionid|aspsessionid\w*)(?:=|$)",
    re.IGNORECASE,
)
_TRACKING_HINT = re.compile(r"utm_|clid|braid|mc_[ce]id|_g[al]|_hs|mkt_tok|vero_id|oly_|sessionid|phpsess|igshid", re.I)
_PATH_SESSION = re.compile(r";jsessionid=[^/;]*", re.IGNORECASE)

_SPLIT = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*):)?(?://([^/?]*))?([^?]*)(?:\?(.*))?", re.DOTALL)
_CONTROL = re.compile(r"[\t\r\n]")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=:@/]*")
_ESCAPE_PATH = re.compile(r"%[0-9A-Fa-f]{2}|[^A-Za-z0-9\-._~!$&'()*+,;=:@/]")
_PLAIN_QUERY = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=:@/?]*")
_ESCAPE_QUERY = re.compile(r"%[0-9A-Fa-f]{2}|[^A-Za-z0-9\-._~!$&'()*+,;=:@/?]")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_HOST = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_C0_AND_SPACE = "".join(map(chr, range(0x21)))


def canonical(url: str) -> str:
    """The canonical spelling of an absolute http(s) URL. Idempotent. `WebError` says why a URL cannot be one."""
    scheme, authority, path, query = _SPLIT.fullmatch(_clean(url)).groups()  # type: ignore[union-attr]
    if scheme is None or authority is None:
        raise WebError("not an absolute URL", where=_shown(url), fix="write it as https://host/path")
    return _assemble(scheme.lower(), authority, path, query, url)


def resolve(base: str, link: str) -> str | None:
    """The canonical URL of `link` found on the page `base` (canonical), or None when it leads to no web page.

    None: other schemes (mailto:, javascript:, data:), a link to the page itself, hosts and ports that do not parse.
    """
    link = _clean(link)
    if not link:
        return None
    scheme, authority, path, query = _SPLIT.fullmatch(link).groups()  # type: ignore[union-attr]
    base_scheme, base_authority, base_path, base_folder, base_query = _base(base)
    if scheme is not None and authority is None:
        return None
    if authority is None:
        authority = base_authority
        if not path:
            path = base_path
            query = base_query if query is None else query
        elif not path.startswith("/"):
            path = base_folder + path
    try:
        return _assemble((scheme or base_scheme).lower(), authority, path, query, link)
    except WebError:
        return None


def host_of(url: str) -> str:
    """The host of a canonical URL, with the port where it is not the scheme's own: `example.org`, `127.0.0.1:8000`."""
    return url.split("/", 3)[2]


def origin_of(url: str) -> str:
    """Scheme, host and port of a canonical URL: the unit that one robots.txt governs."""
    return url[: url.index("/", 8)]


def hostname_and_port(url: str) -> tuple[str, int]:
    """The bare host name (IPv6 without brackets) and the port number of a canonical URL."""
    scheme, _, host = origin_of(url).partition("://")
    if host.endswith("]") or ":" not in host:
        return host.strip("[]"), int(DEFAULT_PORTS[scheme])
    name, _, port = host.rpartition(":")
    return name.strip("[]"), int(port)


@lru_cache(maxsize=256)
def _base(url: str) -> tuple[str, str, str, str, str | None]:
    """(scheme, authority, path, folder, query) of the canonical URL of a page."""
    scheme, authority, path, query = _SPLIT.fullmatch(url).groups()  # type: ignore[union-attr]
    return scheme, authority, path, path[: path.rfind("/") + 1], query


def _clean(url: str) -> str:
    """Without the fragment and the white space that HTML authors leave around and inside a link."""
    url = url.partition("#")[0].strip(_C0_AND_SPACE)
    url = _CONTROL.sub("", url)
    if "\\" in url:  # browsers read a backslash before the query as a slash, and so do attackers
        before, mark, query = url.partition("?")
        url = before.replace("\\", "/") + mark + query
    return url


def _assemble(scheme: str, authority: str, path: str, query: str | None, shown: str) -> str:
    if scheme not in DEFAULT_PORTS:
        raise WebError(f"scheme {scheme!r} is not crawled", where=_shown(shown), fix="use http or https")
    path = _canonical_path(path)
    url = f"{scheme}://{_canonical_authority(scheme, authority)}{path}"
    if query:
        query = _canonical_query(query)
        if query:
            url = f"{url}?{query}"
    if len(url) > MAX_LENGTH:
        raise WebError(f"longer than {MAX_LENGTH} characters", where=_shown(shown))
    return url


@lru_cache(maxsize=65536)
def _canonical_authority(scheme: str, authority: str) -> str:
    if "@" in authority:
        raise WebError("a URL with credentials is refused", where=_shown(authority))
    host, colon, port = authority.rpartition(":") if re.search(r":[^\]]*$", authority) else (authority, "", "")
    host = _canonical_host(host)
    if not colon or not port:
        return host
    if not (port.isascii() and port.isdigit() and 0 < int(port[:10]) < 65536):
        raise WebError(f"not a port: {port!r}", where=_shown(authority))
    port = str(int(port))
    return host if port == DEFAULT_PORTS[scheme] else f"{host}:{port}"


def _canonical_host(host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            address = ipaddress.IPv6Address(host[1:-1])
        except ValueError as error:
            raise WebError("not an IPv6 address", where=_shown(host)) from error
        if address.scope_id is not None:
            raise WebError("an address with a zone is refused", where=_shown(host))
        return f"[{address.compressed}]"
    if "%" in host:
        host = re.sub(r"%([0-9A-Fa-f]{2})", lambda m: chr(int(m[1], 16)), host)
    host = host.lower() if host.isascii() else _to_ascii(host)
    host = host.removesuffix(".")
    if not _HOST.fullmatch(host) or len(host) > 253:
        raise WebError("not a host name", where=_shown(host))
    last = host.rpartition(".")[2]
    return _canonical_ipv4(host) if last.isdigit() or last.startswith("0x") else host


def _to_ascii(host: str) -> str:
    import idna

    try:
        return idna.encode(host, uts46=True, transitional=False).decode("ascii")
    except (idna.IDNAError, UnicodeError) as error:
        raise WebError(f"not an international host name: {error}", where=_shown(host)) from error


def _canonical_ipv4(host: str) -> str:
    """Dotted decimal for every spelling that a resolver may accept: 2130706433, 0x7f.1 and 0177.0.0.1 are 127.0.0.1."""
    try:
        parts = [_ipv4_number(part) for part in host.split(".")]
        *head, tail = parts
        if len(parts) > 4 or any(n > 255 for n in head) or tail >= 256 ** (5 - len(parts)):
            raise ValueError
        value = tail + sum(n << (8 * (3 - i)) for i, n in enumerate(head))
        return str(ipaddress.IPv4Address(value))
    except ValueError:
        raise WebError("not an IPv4 address", where=_shown(host)) from None


def _ipv4_number(text: str) -> int:
    if not text.isalnum() or not text.isascii():
        raise ValueError(text)
    if text.startswith("0x"):
        return int(text[2:] or "0", 16)
    return int(text, 8) if len(text) > 1 and text.startswith("0") else int(text)


def _canonical_path(path: str) -> str:
    if not path:
        return "/"
    if not _PLAIN_PATH.fullmatch(path):
        path = _ESCAPE_PATH.sub(_escape, path)
    if ";" in path:
        path = _PATH_SESSION.sub("", path)
    return _remove_dots(path) if "/." in path or not path.startswith("/") else path


def _canonical_query(query: str) -> str:
    if not _PLAIN_QUERY.fullmatch(query):
        query = _ESCAPE_QUERY.sub(_escape, query)
    if _TRACKING_HINT.search(query):
        query = "&".join(part for part in query.split("&") if not _TRACKING.match(part))
    return query


def _escape(match: re.Match[str]) -> str:
    text = match[0]
    if len(text) == 3:  # %XX
        char = chr(int(text[1:], 16))
        return char if char in _UNRESERVED else text.upper()
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "replace"))


def _remove_dots(path: str) -> str:
    """RFC 3986 §5.2.4."""
    kept: list[str] = []
    segments = path.removeprefix("/").split("/")
    for segment in segments:
        if segment == "..":
            if kept:
                kept.pop()
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _shown(url: str) -> str:
    return url if len(url) <= 120 else url[:117] + "..."
