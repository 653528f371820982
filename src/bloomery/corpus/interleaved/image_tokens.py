"""Interleaved documents as plain text for training: a token stands where an image was."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from bloomery.core.errors import ConfigError
from bloomery.corpus.documents import text_parts, with_column
from bloomery.corpus.interleaved.parts import IMAGE_TOKEN, parts_of, token_text
from bloomery.corpus.steps import Step


@dataclass(frozen=True)
class ImageTokens(Step):
    """Replaces the parts of a document by one text with `token` for every image; the images themselves are gone.

    Text that holds the token already would be taken for an image: there a space is put after its first character.
    """

    token: str = IMAGE_TOKEN

    def __post_init__(self) -> None:
        if len(self.token) < 2:
            raise ConfigError(f"token is {self.token!r}", fix="two characters or more, such as <image>")

    @property
    def writes(self) -> tuple[str, ...]:
        """The parts."""
        return ("parts",)

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """One text part for every document."""
        broken = f"{self.token[0]} {self.token[1:]}"
        found = []
        for parts in parts_of(batch):
            clean = [p if p.text is None else type(p)(p.text.replace(self.token, broken)) for p in parts]
            found.append(token_text(clean, self.token))
        return with_column(batch, "parts", text_parts(pa.array(found, pa.string())))
