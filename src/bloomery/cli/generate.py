"""`bloomery generate`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional

from bloomery.cli.options import FLAT, parse, print_json
from bloomery.core.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bloomery.models import Decoder


@dataclass
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int = 128
    """Most tokens to add."""
    temperature: float = 0.0
    """0 takes the most likely token."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set with this much probability."""
    min_p: float = 0.0
    """Keep tokens at least this share as likely as the most likely one."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that occurred before less likely."""
    stop: tuple[str, ...] = ()
    """Strings that end a completion."""
    seed: int = 0
    """The same seed gives the same text."""


@dataclass
class Where:
    """Which hardware and number format."""

    device: str = "auto"
    """cpu, cuda or auto."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on a GPU, float32 on a CPU."""


@dataclass
class Options:
    """Continue prompts with a model folder (Hugging Face format). Reads standard input where no prompt is given.

    Example:
      bloomery generate runs/mine/model "The os.path module" --temperature 0.8 --top-p 0.95
    """

    model: Annotated[Path, Positional]
    """Model folder with tokenizer.json."""
    prompts: Annotated[tuple[str, ...], Positional] = ()
    """One or more prompts."""
    sampling: Annotated[Sampling, FLAT] = field(default_factory=Sampling)
    where: Annotated[Where, FLAT] = field(default_factory=Where)
    draft: Path | None = None
    """Folder of a smaller model with the same tokenizer: speculative decoding, for speed at one prompt at a time."""
    json: bool = False
    """Machine-readable output, with tokens and log-probabilities."""


def main(argv: Sequence[str]) -> int:
    """Print completions."""
    options = parse(Options, argv, prog="bloomery generate")
    prompts = list(options.prompts) or [sys.stdin.read().rstrip("\n")]
    if prompts == [""]:
        raise ConfigError("no prompt", fix='bloomery generate DIR "some text", or text on standard input')
    model, tokenizer = load(options.model, options.where)
    from bloomery.generate import generate

    draft = None if options.draft is None else load_draft(options.draft, options.where, tokenizer)
    completions = generate(model, tokenizer, prompts, draft=draft, **dataclasses.asdict(options.sampling))
    if options.json:
        print_json([{"prompt": p, **dataclasses.asdict(c)} for p, c in zip(prompts, completions, strict=True)])
        return 0
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        print(("\n" if i else "") + prompt + completion.text)
    if draft is not None:
        rates = ", ".join(f"{completion.acceptance:.0%}" for completion in completions)
        print(f"kept of the draft's tokens: {rates}", file=sys.stderr)
    return 0


def load(folder: Path, where: Where) -> tuple[Decoder, Tokenizer]:
    """Model and tokenizer of a folder, on the wanted device."""
    from bloomery.core.devices import pick_device, pick_dtype
    from bloomery.corpus import tokenizer
    from bloomery.models import load_pretrained

    device = pick_device(where.device)
    model = load_pretrained(folder, dtype=pick_dtype(where.dtype, device), device=device)
    return model, tokenizer.load(folder)


def load_draft(folder: Path, where: Where, tokenizer: Tokenizer) -> Decoder:
    """The model that drafts for another one; both must have the same vocabulary."""
    draft, words = load(folder, where)
    if words.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            "the draft model's tokenizer has another vocabulary than the model's",
            where=folder,
            fix="speculative decoding needs two models with one and the same tokenizer",
        )
    return draft
