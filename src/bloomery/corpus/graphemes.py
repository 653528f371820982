"""Places where a text may be cut without tearing a visible character (extended grapheme cluster, UAX #29).

Sure rather than complete: every place that is allowed here is a cluster's border, but some borders are not allowed:
next to characters that this Python's Unicode does not know, and between a combining mark and a letter.
"""

from __future__ import annotations

import functools
import unicodedata

NEVER_BEFORE = ("Mn", "Mc", "Me", "Cf", "Cn")  # categories that join what comes before them (or may one day)
NEVER_AFTER = ("Cf", "Cn")
# What joins, but is of other categories: Thai and Lao AM, half-width voicing marks, the skin tones.
JOINS_BEFORE = frozenset("\u0e33\u0eb3\uff9e\uff9f\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff")
# Prepended letters of Malayalam and other Indic scripts.
JOINS_AFTER = frozenset(
    "\u0d4e\U000111c2\U000111c3\U000113d1\U0001193f\U00011941\U00011a3a\U00011d46\U00011f02"
) | frozenset(map(chr, range(0x11A84, 0x11A8A)))


def is_border(data: bytes, place: int) -> bool:
    """Whether UTF-8 `data` may be cut before the byte at `place` (0 … its length)."""
    if place in (0, len(data)):
        return True
    before, after = data[place - 1], data[place]
    if before < 0x80 and after < 0x80:
        return not (before == 13 and after == 10)
    if after & 0xC0 == 0x80:
        return False
    start = place - 1
    while data[start] & 0xC0 == 0x80:
        start -= 1
    return may_cut(data[start:place].decode(), data[place : place + 4].decode(errors="ignore")[0])


@functools.lru_cache(1 << 16)
def may_cut(before: str, after: str) -> bool:
    """Whether a text may be cut between these two characters, whatever stands around them."""
    category, following = unicodedata.category(before), unicodedata.category(after)
    if following in NEVER_BEFORE or category in NEVER_AFTER or after in JOINS_BEFORE or before in JOINS_AFTER:
        return False
    if category == "Mn" and following == "Lo":  # the mark may be a virama, which joins consonants
        return False
    if _is_flag_letter(before) and _is_flag_letter(after):
        return False
    return not (before == "\r" and after == "\n") and not _hangul_joins(before, after)


def inward(data: bytes, begin: int, end: int) -> tuple[int, int]:
    """The largest range within [begin, end) that may be cut out of `data`; empty (begin = end) where there is none."""
    while begin < end and not is_border(data, begin):
        begin += 1
    while end > begin and not is_border(data, end):
        end -= 1
    return begin, end


def _is_flag_letter(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _hangul_joins(before: str, after: str) -> bool:
    if "\u1160" <= after <= "\u11ff" or "\ud7b0" <= after <= "\ud7fb":  # a vowel or a final consonant
        return True
    leading = "\u1100" <= before <= "\u115f" or "\ua960" <= before <= "\ua97c"
    return leading and ("\u1100" <= after <= "\u115f" or "\ua960" <= after <= "\ua97c" or "\uac00" <= after <= "\ud7a3")
