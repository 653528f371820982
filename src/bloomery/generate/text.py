"""Tokens to text, one token at a time: whole characters only, and never a part of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

UNFINISHED = "\ufffd"  # what decoders put for bytes that are not (yet) a character


class TextBuilder:
    """The text of a growing token sequence, cut before the first stop string.

    Tokens may end inside a character and stop strings may start inside a token. `push` therefore keeps back trailing
    bytes that are not yet a character, and `take` keeps back an ending that may grow into a stop string. The pieces
    that `take` returns concatenate to `text` as it is after `close`.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.text = ""
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._longest_stop = max(map(len, self._stop), default=0)
        self._context: list[int] = []  # tokens already in the text; decoders look at what comes before a token
        self._fresh: list[int] = []  # tokens not wholly in the text
        self._shown = 0  # characters of decode(context + fresh) that are in the text
        self._taken = 0  # characters of the text handed out by `take`
        self._closed = False

    def push(self, token: int) -> bool:
        """Append a token; True when its text completes a stop string (which is cut off, and the builder closed)."""
        self._fresh.append(token)
        window = self._decode(self._context + self._fresh)
        whole = window.rstrip(UNFINISHED)
        stopped = self._append(whole[self._shown :])
        self._shown = max(self._shown, len(whole))
        if len(whole) == len(window) and (shown := len(self._decode(self._fresh))):
            self._context, self._fresh, self._shown = self._fresh, [], shown
        return stopped

    def close(self) -> bool:
        """No more tokens: bytes kept back become U+FFFD. True when that completes a stop string."""
        if self._closed:
            return False
        stopped = self._append(self._decode(self._context + self._fresh)[self._shown :])
        self._closed = True
        return stopped

    def take(self) -> str:
        """The text not taken before, less an ending that may become a stop string (nothing is kept once closed)."""
        end = len(self.text) if self._closed else len(self.text) - self._possible_stop()
        piece = self.text[self._taken : end]
        self._taken = max(self._taken, end)
        return piece

    def _append(self, piece: str) -> bool:
        begin = max(0, len(self.text) - self._longest_stop + 1)  # an earlier match would have been found before
        self.text += piece
        matches = [at for stop in self._stop if (at := self.text.find(stop, begin)) >= 0] if piece else []
        if matches:
            self.text = self.text[: min(matches)]
            self._closed = True
        return bool(matches)

    def _possible_stop(self) -> int:
        """Length of the longest ending of the text that begins a stop string."""
        for length in range(min(self._longest_stop - 1, len(self.text)), 0, -1):
            if any(stop.startswith(self.text[-length:]) for stop in self._stop):
                return length
        return 0

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)
