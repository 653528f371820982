"""What datatrove's four page filters decide on documents: run by an interpreter that has datatrove (and spaCy).

    peer/bin/python tests/parity/datatrove_side.py whitespace|spacy < documents.json > decisions.json

Documents are a JSON list of texts; decisions are, for every filter and text, [reason or "", the text after it]. With
"whitespace", datatrove is given `str.split` and the sentences of `sentences`. `--golden tests/parity` instead writes
its decisions on the generated documents into datatrove_golden.json.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("GopherRepetition", "GopherQuality", "C4Quality", "C4QualityNoPunct", "FineWebQuality")
GENERATED = 300
CLOSING = "\"'”’»)]"


def generated(count: int = GENERATED, seed: int = 0) -> list[str]:
    """Documents near the bounds of every rule: words, lines and signs drawn with rates that vary from text to text."""
    rng = random.Random(seed)
    made = ["", " ", "\n", "\n\n \n", "one", "a\n", "\r\n", "The end. [1]\r\nIt is so.\r\n"]
    numbers = [str(n * 7919 % 991) for n in range(90)]
    made.append("the of " + " ".join(f"#{n}x" for n in numbers))
    made.append("the of " + " ".join(f"w{n}{'x' * 12}" for n in numbers))
    made.append("the of " + " ".join(n[:1] + "a" for n in numbers))
    made.append("\n\n".join(["same words again " + "z" * 90, *numbers[:60], "same words again " + "z" * 90]))
    made.append(" ... ".join(["the of", *(f"w{n}" for n in numbers)]).replace(" ... ", " ", 60))
    made.append("\n\n\n\n".join(f"{n}{'y' * 40} {n}{'z' * 12}." for n in numbers))
    while len(made) < count:
        made.append(_document(rng))
    return made[:count]


STOPS = ["the", "be", "to", "of", "and", "that", "have", "with", "The", "THAT"]
ODD = [
    "#",
    "...",
    "…",
    "12",
    "3.14",
    "—",
    "&",
    "•",
    "{x}",
    "e.g.",
    "don't",
    "U.S.",
    "naïve",
    "東京",
    "एक।",
    "[2]",
    "[edit]",
]
PHRASES = ["lorem ipsum dolor", "enable Javascript now", "our cookie policy", "Terms of Use apply", "{ color: red }"]
ENDS = [".", "!", "?", "...", "…", '."', ".”", "。", ":", "", ". [1]", ".[citation needed]", ". ", ".\r", ". (so.)"]


def _document(rng: random.Random) -> str:
    vocabulary = [
        "".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, rng.choice([4, 9, 16])))) for _ in range(300)
    ]
    stop, odd, end = rng.choice([0.01, 0.2, 0.4]), rng.choice([0, 0.02, 0.3]), rng.random()
    again, blank, bullets = rng.choice([0, 0.02, 0.1, 0.3]), rng.choice([0, 0.1, 0.6]), rng.choice([0, 0, 0.5, 0.95])
    width, phrases = rng.choice([2, 6, 14, 30]), rng.choice([0, 0, 0.02])
    words: list[str] = []
    lines: list[str] = []
    for _ in range(rng.choice([1, 4, 12, 40])):
        if lines and rng.random() < again:
            lines.append(rng.choice(lines))
            continue
        for _ in range(rng.randint(1, 2 * width)):
            kind = rng.random()
            if words and kind < again / 3:
                start = rng.randrange(len(words))
                words += words[start : start + rng.randint(2, 14)]
            elif kind < again / 3 + phrases / 4:
                words += rng.choice(PHRASES).split()
            else:
                source = STOPS if rng.random() < stop else ODD if rng.random() < odd else vocabulary
                words.append(rng.choice(source))
        line = " ".join(words[-rng.randint(1, 2 * width) :]) + (rng.choice(ENDS) if rng.random() < end else "")
        if rng.random() < bullets:
            line = rng.choice(["• ", "- ", "  - ", "* "]) + line
        lines.append(line)
        if rng.random() < blank:
            lines.append(rng.choice(["", " ", "\t", "\n"]))
    return rng.choice(["", "\n", " "]) + rng.choice(["\n", "\n", "\n", "\u2028", "\x0c"]).join(lines)


def sentences(text: str) -> list[tuple[int, int]]:
    """Spans of sentences: a word that ends in a terminal, closing signs aside, ends one."""
    spans, start, end = [], 0, 0
    for word in re.finditer(r"\S+", text):
        end = word.end()
        bare = word.group().rstrip(CLOSING)
        if bare and bare[-1] in terminals():
            spans.append((start, end))
            start = end
    return spans if spans and not text[start:].strip() else [*spans, (start, len(text))]


def terminals() -> set[str]:
    from datatrove.utils.text import TERMINAL_PUNCTUATION

    return set(TERMINAL_PUNCTUATION)


def filters(tokenizer: str) -> dict[str, Any]:
    """A fresh set of datatrove's filters with their defaults."""
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Whitespace(WordTokenizer):
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return [text[a:b] for a, b in sentences(text)]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return sentences(text)

    language: Any = Whitespace() if tokenizer == "whitespace" else "eng"
    return {
        "GopherRepetition": GopherRepetitionFilter(language=language),
        "GopherQuality": GopherQualityFilter(language=language),
        "C4Quality": C4QualityFilter(language=language),
        "C4QualityNoPunct": C4QualityFilter(language=language, filter_no_terminal_punct=False),
        "FineWebQuality": FineWebQualityFilter(language=language),
    }


def decide(texts: list[str], tokenizer: str) -> dict[str, list[tuple[str, str]]]:
    """[reason or "", text afterwards] of every text, by filter."""
    return {name: list(_decisions(one, texts)) for name, one in filters(tokenizer).items()}


def _decisions(one: Any, texts: list[str]) -> Iterator[tuple[str, str]]:
    from datatrove.data import Document

    for number, text in enumerate(texts):
        document = Document(text=text, id=str(number))
        answer = one.filter(document)
        kept, reason = answer if isinstance(answer, tuple) else (answer, "")
        yield ("" if kept else reason), document.text


def digest(decided: list[list[str]] | list[tuple[str, str]]) -> list[str]:
    """Reasons, and for kept documents a short hash of the text: what the golden file holds."""
    return [reason or hashlib.md5(text.encode()).hexdigest()[:6] for reason, text in decided]


def main() -> None:
    if sys.argv[1] == "--golden":
        import importlib.metadata

        found = {kind: {k: digest(v) for k, v in decide(generated(), kind).items()} for kind in ("whitespace", "spacy")}
        versions = {name: importlib.metadata.version(name) for name in ("datatrove", "spacy")}
        versions["unicode"] = unicodedata.unidata_version
        target = Path(sys.argv[2]) / "datatrove_golden.json"
        lines = [f'"{kind}/{name}": {json.dumps(values)}' for kind, of in found.items() for name, values in of.items()]
        target.write_text('{"versions": ' + json.dumps(versions) + ",\n" + ",\n".join(lines) + "}\n", encoding="utf-8")
        return
    json.dump(decide(json.load(sys.stdin), sys.argv[1]), sys.stdout)


if __name__ == "__main__":
    main()
