"""Language models that say whether a document is worth training on, for `corpus.llm_selection`.

The answer is soft: p(yes) / (p(yes) + p(no)) of the next token (arXiv 2406.04638 constrains the answer in the same way;
the exact prompt is not published, so this one is ours). Long documents are cut, which the prompt does not hide.
"""

from __future__ import annotations

import json
import math
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from bloomery.core.errors import ConfigError, DataError
from bloomery.generate.choices import choice_logprobs
from bloomery.models.decoder import Decoder

PROMPT = """Here is the beginning of a document from the web.

---
{document}
---

Would a student learn something from it, is it well written, and does it make sense on its own? Answer yes or no.
Answer:"""
CHARACTERS = 2_000  # of a document that are shown
VERBALISERS = (" yes", " no")
LARGEST_ANSWER = 1 << 20  # bytes of an endpoint's answer that are read
SMALLEST = 1e-6  # probability of an answer that an endpoint does not list


class ModelLabeler:
    """A local model as a labeler: texts -> float64 (texts,)."""

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        name: str,
        prompt: str = PROMPT,
        verbalisers: tuple[str, str] = VERBALISERS,
        characters: int = CHARACTERS,
    ) -> None:
        _check_prompt(prompt)
        self._model, self._tokenizer = model, tokenizer
        self._prompt, self._verbalisers, self._characters = prompt, verbalisers, characters
        self.identity = {"model": name, "prompt": prompt, "answers": list(verbalisers), "characters": characters}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """How much the model leans to yes."""
        labels = []
        for text in texts:
            prompt = self._prompt.format(document=text[: self._characters])
            yes, no = choice_logprobs(self._model, self._tokenizer, prompt, self._verbalisers)
            labels.append(1 / (1 + math.exp(min(700.0, no - yes))))
        return np.array(labels)


class EndpointLabeler:
    """A model behind an OpenAI-style completions endpoint that lists the likeliest first tokens.

    Args:
        url: base URL, such as http://localhost:8000/v1.
        model: its name there.
        api_key: sent as a bearer token where given.
        timeout: seconds for one answer.
    """

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str = "",
        prompt: str = PROMPT,
        verbalisers: tuple[str, str] = VERBALISERS,
        characters: int = CHARACTERS,
        timeout: float = 60.0,
    ) -> None:
        _check_prompt(prompt)
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"url={url!r}", where="EndpointLabeler", fix="http:// or https://")
        self._url, self._model, self._key, self._timeout = url.rstrip("/"), model, api_key, timeout
        self._prompt, self._verbalisers, self._characters = prompt, verbalisers, characters
        self.identity = {"model": model, "prompt": prompt, "answers": list(verbalisers), "characters": characters}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """How much the model leans to yes; DataError where it names neither answer."""
        return np.array([self._label(self._prompt.format(document=text[: self._characters])) for text in texts])

    def _label(self, prompt: str) -> float:
        body = {"model": self._model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 20}
        answer = self._post("/completions", body)
        try:
            top = dict(answer["choices"][0]["logprobs"]["top_logprobs"][0])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise DataError(
                "an answer without top_logprobs", where=self._url, fix="use a server that lists them"
            ) from error
        yes, no = (_probability(top, word) for word in self._verbalisers)
        if not yes and not no:
            raise DataError(f"neither answer is among {sorted(top)[:5]}…", where=self._url, fix="change the prompt")
        yes, no = max(yes, SMALLEST), max(no, SMALLEST)
        return yes / (yes + no)

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(self._url + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                return json.loads(response.read(LARGEST_ANSWER))
        except urllib.error.HTTPError as error:
            detail = error.read(300).decode(errors="replace")
            raise DataError(f"the endpoint answered {error.code}: {detail}", where=self._url) from error
        except (OSError, ValueError) as error:
            raise DataError(f"no usable answer: {error}", where=self._url, fix="is the server running?") from error


def _check_prompt(prompt: str) -> None:
    if "{document}" not in prompt:
        raise ConfigError("a prompt without {document}", where="labeler")


def _probability(top: Mapping[str, float], word: str) -> float:
    """The probability of all listed tokens that say `word`, whatever their case and space."""
    return sum(math.exp(value) for token, value in top.items() if token.strip().lower() == word.strip().lower())
