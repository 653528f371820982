"""Content hashes: stable across processes, machines and Python versions (unlike `hash`)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import xxhash


def digest(value: object, length: int = 16) -> str:
    """Hex digest (`length` characters) of any JSON value; dictionaries hash independently of their key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()[:length]


def file_digest(path: Path | str, length: int = 16) -> str:
    """Hex digest of a file's bytes, read in blocks."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()[:length]


def hash64(data: str | bytes, seed: int = 0) -> int:
    """Fast unsigned 64-bit hash (xxh3). Not cryptographic."""
    return xxhash.xxh3_64_intdigest(data.encode() if isinstance(data, str) else data, seed=seed)
