"""The word and character lists of the text rules. Not included: flagged words and common words, which depend on you.

`WordLists()` has our own English function words and Unicode's categories; `WordLists.load` reads a JSON file with any
of the fields, so that the lists of a published set can be used as they are. Common words come from a corpus
(`common_words`), as in OBELICS (arXiv 2306.16527), whose own file cannot be had any more.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from bloomery.core.config import decode
from bloomery.core.errors import ConfigError, DataError
from bloomery.core.files import read_json
from bloomery.core.hashing import digest
from bloomery.corpus.documents import texts
from bloomery.corpus.interleaved.text_ratios import split
from bloomery.corpus.words import hash_words

# English words that carry grammar: determiners, pronouns, auxiliaries, prepositions, conjunctions, adverbs.
FUNCTION_WORDS = """
a an the this that these those such same other another each every either neither both all any some no none much many
more most few fewer fewest less least several enough half one once twice
i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers herself
it its itself they them their theirs themselves who whom whose which what whoever whatever whichever someone somebody
something anyone anybody anything everyone everybody everything nobody nothing
be am is are was were been being have has had having do does did doing done can could may might must shall should will
would ought let get gets got isn't aren't wasn't weren't haven't hasn't hadn't don't doesn't didn't can't cannot
couldn't mustn't shouldn't won't wouldn't i'm i've i'd i'll you're you've you'd you'll he's he'd he'll she's she'd
she'll it's it'll we're we've we'd we'll they're they've they'd they'll that's there's here's what's who's let's
about above across after against along alongside amid among around as at before behind below beneath beside besides
between beyond by despite down during except for from in inside into like near of off on onto opposite out outside over
past per since than through throughout till to toward towards under underneath until up upon via with within without
according and but or nor so yet if unless because although though while whereas whether when where why how whenever
wherever however therefore thus hence otherwise instead
not never always often sometimes ever again also too very quite rather just only even still already almost perhaps maybe
now then here there soon later away back else indeed
"""
# Words of the frame around an article: what to do with the page, its accounts, its terms, its social networks.
SPAM_WORDS = """
account click comment comments cookie cookies copyright download facebook follow instagram liked linkedin loading log
login logout newsletter password permalink pinterest policy post posted privacy reddit register reply share shared sign
sign-up signup subscribe terms tumblr tweet twitter unsubscribe whatsapp youtube
"""
PRUNE = 1 << 22  # different words counted before rare ones are forgotten


def _spellings(words: str) -> tuple[str, ...]:
    """The words, and those with an apostrophe also with the typographic one."""
    return tuple(dict.fromkeys(spelled for word in words.split() for spelled in (word, word.replace("'", "’"))))


@dataclass(frozen=True)
class WordLists:
    """What the text rules look words and characters up in.

    Args:
        stop_words: lower case; ours hold don't and don’t.
        flagged_words: words of texts that nobody should learn from; none by default.
        common_words: the vocabulary of ordinary text (`common_words`); None = the rule has nothing to look at.
        special_characters: stripped from both ends of words, and counted; None = all but Unicode's letters and marks.
        punctuation: the marks that prose has.
        spam_words: see `SPAM_WORDS`.
    """

    stop_words: tuple[str, ...] = _spellings(FUNCTION_WORDS)
    flagged_words: tuple[str, ...] = ()
    common_words: tuple[str, ...] | None = None
    special_characters: str | None = None
    punctuation: str = ",;:?!."
    spam_words: tuple[str, ...] = tuple(SPAM_WORDS.split())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read the lists of a JSON object; what it does not have stays as it is here.

        Raises:
            ConfigError: an unknown list, or a value that is none.
            DataError: not JSON.
        """
        try:
            values = read_json(Path(path))
        except (OSError, ValueError) as error:
            raise DataError(f"cannot be read: {error}", where=path, fix="a JSON object of lists of words") from error
        return decode(cls, values, where=str(path))

    @functools.cached_property
    def hashes(self) -> dict[str, np.ndarray]:
        """Sorted hashes (`words.hash_words`) of each list of words: uint64 (words,)."""
        names = ("stop_words", "flagged_words", "common_words", "spam_words")
        return {name: np.unique(hash_words(getattr(self, name) or ())) for name in names}

    def fingerprint(self) -> dict[str, Any]:
        """A hash of everything: the lists may be long."""
        values = [self.stop_words, self.flagged_words, self.common_words, self.special_characters]
        return {"word_lists": digest([*values, self.punctuation, self.spam_words], 32)}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "hashes"}


def common_words(batches: Iterable[pa.RecordBatch], size: int = 100_000, special: str | None = None) -> tuple[str, ...]:
    """The `size` most frequent words of some documents, most frequent first (equal ones by the alphabet).

    Words are those of the rules (`text_ratios.split`). Memory is bounded: above `PRUNE` different words the rarer half
    is forgotten, which can cost a word that is rare at first and frequent later.
    """
    if size < 1:
        raise ConfigError(f"size={size}", where="common_words", fix="1 or more")
    counts: Counter[str] = Counter()
    for batch in batches:
        for words in split(texts(batch).to_pylist(), special):
            _, first, times = np.unique(words.hashes, return_index=True, return_counts=True)
            spelled = (
                words.data[s:e].tobytes().decode() for s, e in zip(words.starts[first], words.ends[first], strict=True)
            )
            counts.update(dict(zip(spelled, times.tolist(), strict=True)))
        if len(counts) > PRUNE:
            counts = Counter(dict(counts.most_common(PRUNE // 2)))
    return tuple(sorted(counts, key=lambda word: (-counts[word], word))[:size])
