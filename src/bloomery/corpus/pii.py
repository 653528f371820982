"""Personal data in text: e-mail addresses and public IPv4 addresses make way for ones that belong to nobody.

Left out: IPv6 addresses, telephone numbers, names. As in MINT-1T (arXiv 2406.11271) and FineWeb (arXiv 2406.17557),
which use datatrove's formatter; there replacements take turns, here a replacement is a function of what it replaces, so
that the same address reads the same everywhere and the order of documents does not matter.
"""

from __future__ import annotations

import ipaddress
import re
import string
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from bloomery.core.errors import ConfigError
from bloomery.corpus.interleaved.flat_parts import FlatParts
from bloomery.corpus.steps import Step

EMAILS = ("email@example.com", "firstname.lastname@example.org")  # RFC 2606
ADDRESSES = ("192.0.2.1", "198.51.100.1", "203.0.113.1")  # RFC 5737: one of each block for documentation
LOCAL, DOMAIN = 64, 255  # characters before and after the @ (RFC 5321)

_ATOM = frozenset(string.ascii_letters + string.digits + "!#$%&'*+/=?^_`{|}~-")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_AFTER = re.compile(rf"@(?:{_LABEL}\.){{1,10}}{_LABEL}")
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?<![0-9.]){_OCTET}(?:\.{_OCTET}){{3}}(?![0-9]|\.[0-9])")


@dataclass(frozen=True)
class ReplacePII(Step):
    """Replace e-mail and IP addresses in every text part; images and their metadata stay.

    Args:
        emails: what stands for an e-mail address; none = they stay.
        addresses: what stands for an IPv4 address; none = they stay.
        only_public: leave addresses that are not routed on the internet (10.0.0.1, 127.0.0.1, those of `ADDRESSES`).
    """

    emails: tuple[str, ...] = EMAILS
    addresses: tuple[str, ...] = ADDRESSES
    only_public: bool = True

    def __post_init__(self) -> None:
        if not self.emails and not self.addresses:
            raise ConfigError("nothing to replace", where="ReplacePII", fix="leave the step out")

    @property
    def writes(self) -> tuple[str, ...]:
        """The parts."""
        return ("parts",)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The documents with other addresses."""
        flat = FlatParts.of(batch)
        hint = pc.match_substring_regex(pc.struct_field(flat.pieces, "text"), r"@|[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")
        at = np.flatnonzero(flat.is_text & pc.fill_null(hint, False).to_numpy(zero_copy_only=False))
        texts = flat.texts
        for part in at.tolist():
            texts[part] = self.replaced(texts[part] or "")
        return flat.replaced(batch, np.ones(len(texts), dtype=bool), texts) if len(at) else batch

    def replaced(self, text: str) -> str:
        """The text with other addresses; in time linear in its length."""
        if self.emails and "@" in text:
            text = self._without_emails(text)
        return _IPV4.sub(lambda found: self._address(found[0]), text) if self.addresses else text

    def _without_emails(self, text: str) -> str:
        kept, done, at = [], 0, text.find("@")
        while at >= 0:
            after = _AFTER.match(text, at, at + DOMAIN)
            begin = _local_part(text, max(done, at - LOCAL), at) if after else at
            if after and begin < at:
                kept += [text[done:begin], _choice(self.emails, text[begin : after.end()])]
                done = after.end()
            at = text.find("@", max(at + 1, done))
        return "".join([*kept, text[done:]])

    def _address(self, found: str) -> str:
        if self.only_public and not ipaddress.ip_address(found).is_global:
            return found
        return _choice(self.addresses, found)


def _local_part(text: str, start: int, at: int) -> int:
    """Where the local part of an address begins that ends at `at`; `at` where there is none."""
    begin, dot = at, True  # neither its end nor its beginning is a dot, and no dot follows another
    while begin > start and (text[begin - 1] in _ATOM or (text[begin - 1] == "." and not dot)):
        begin -= 1
        dot = text[begin] == "."
    return begin + 1 if begin < at and dot else begin


def _choice(names: tuple[str, ...], found: str) -> str:
    return names[xxhash.xxh3_64_intdigest(found.encode()) % len(names)]
