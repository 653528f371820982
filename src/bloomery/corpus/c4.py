"""C4's rules for lines and pages (arXiv:1910.10683, §2.2), as datatrove applies them.

Left out: the list of bad words and the removal of repeated spans of three sentences. What words are, and what strict
means, is said in `fineweb`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import pyarrow as pa

from bloomery.corpus.documents import texts, with_texts
from bloomery.corpus.fineweb import TERMINALS, Tokenizer, check_tokenizer, points, spacy_english
from bloomery.corpus.steps import Step, drop_reasons

CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
CLOSING = "\"'”’»)]"
SENTENCE_ENDS = (".", "?", "!", '"', "'")
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


@dataclass(frozen=True)
class C4Quality(Step):
    """C4's rules (arXiv:1910.10683, §2.2): drops lines that are no prose, then pages of few sentences; edits the text.

    Lines go that have a word of more than `max_word_length` characters, do not end in . ? ! or a quote (or end in an
    ellipsis), have fewer than `min_words` words, or speak of Javascript, cookies and policies; marks of citations are
    deleted. A page goes that has "lorem ipsum" or "{" in a line that is left, or fewer than `min_sentences` sentences.

    Args:
        terminal_punctuation: whether lines must end in a terminal; FineWeb leaves this rule out.
        min_sentences: sentences of a page, counted line by line.
        min_words: words of a line.
        max_word_length: characters of a word.
        tokenizer: what cuts lines into sentences.
        strict_reference: like datatrove, look at the end of a line with the white space that a deleted citation leaves
            ("It is so. [1]" is then no sentence) and count the citations as words. By default the line is stripped
            after the deletion.
    """

    terminal_punctuation: bool = True
    min_sentences: int = 5
    min_words: int = 3
    max_word_length: int = 1_000
    tokenizer: Tokenizer = "whitespace"
    strict_reference: bool = False

    def __post_init__(self) -> None:
        check_tokenizer(self.tokenizer, "C4Quality")

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The edited text; the pages that break a rule are marked and keep theirs."""
        before = texts(batch).to_pylist()
        results = [self._page(text) for text in before]
        after = [old if new is None else new for old, (new, _) in zip(before, results, strict=True)]
        if after != before:
            batch = with_texts(batch, after)
        return drop_reasons(batch, [reason for _, reason in results])

    def _page(self, text: str) -> tuple[str | None, str | None]:
        """(new text, None) or (None, reason)."""
        sentences, kept = 0, []
        for line in text.splitlines():
            line = line.strip()
            long_words = len(line) > self.max_word_length and max(map(len, line.split())) > self.max_word_length
            words = line.split() if self.strict_reference else None
            if "[" in line:
                line = CITATION.sub("", line)
                line = line if self.strict_reference else line.strip()
            if long_words or (self.terminal_punctuation and not _is_terminated(line)):
                continue
            if len(line.split() if words is None else words) < self.min_words:
                continue
            lower = line.lower()
            if "lorem ipsum" in lower:
                return None, "lorem ipsum"
            if "javascript" in lower:
                continue
            if "{" in line:
                return None, "curly bracket"
            if any(policy in lower for policy in POLICIES):
                continue
            sentences += count_sentences(line, self.tokenizer)
            kept.append(line)
        if sentences < self.min_sentences:
            return None, "too few sentences"
        return "\n".join(kept).strip(), None


def _is_terminated(line: str) -> bool:
    return line.endswith(SENTENCE_ENDS) and not line.endswith("...")


def count_sentences(text: str, tokenizer: Tokenizer = "whitespace") -> int:
    """Sentences of a text that is not empty; what follows the last terminal is one as well."""
    if tokenizer == "spacy":
        nlp = spacy_english()
        with nlp.memory_zone():
            nlp.max_length = len(text) + 10
            return sum(1 for _ in nlp(text).sents)
    terminals, end = _sentence_end()
    return len(end.findall(text)) + (text.rstrip().rstrip(CLOSING)[-1:] not in terminals)


@functools.cache
def _sentence_end() -> tuple[frozenset[str], re.Pattern[str]]:
    terminals = frozenset(map(chr, points(TERMINALS)))
    return terminals, re.compile(rf"[{re.escape(''.join(sorted(terminals)))}][{re.escape(CLOSING)}]*(?!\S)")
