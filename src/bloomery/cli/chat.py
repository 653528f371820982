"""`bloomery chat`: a conversation on the terminal."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from bloomery.cli.generate import Sampling, Where, load
from bloomery.cli.options import FLAT, parse, print_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bloomery.models import Decoder


@dataclass
class Options:
    """Talk to a model folder. An empty line or Ctrl-D ends the conversation, /new starts another.

    Example:
      bloomery chat runs/mine/model
      bloomery chat runs/mine/model --message "What does os.path.join do?" --json
    """

    model: Annotated[Path, Positional]
    """Model folder with tokenizer.json."""
    message: tuple[str, ...] = ()
    """Say these, print the replies and exit (for scripts)."""
    system: str = ""
    """A first message that sets the scene."""
    sampling: Annotated[Sampling, FLAT] = field(default_factory=Sampling)
    where: Annotated[Where, FLAT] = field(default_factory=Where)
    json: bool = False
    """With --message: the conversation as JSON."""


def main(argv: Sequence[str]) -> int:
    """Chat until the user stops."""
    options = parse(Options, argv, prog="bloomery chat")
    model, tokenizer = load(options.model, options.where)
    template = read_template(options.model)
    start = [{"role": "system", "content": options.system}] if options.system else []
    conversation = list(start)
    for said in options.message or _typed():
        if said == "/new":
            conversation = list(start)
            continue
        conversation.append({"role": "user", "content": said})
        pieces = []
        for piece in reply(model, tokenizer, conversation, options.sampling, template):
            pieces.append(piece)
            if not options.json:
                print(piece, end="", flush=True)
        if not options.json:
            print()
        conversation.append({"role": "assistant", "content": "".join(pieces)})
    if options.json:
        print_json(conversation)
    return 0


def reply(
    model: Decoder,
    tokenizer: Tokenizer,
    conversation: Sequence[Mapping[str, str]],
    sampling: Sampling,
    template: Template | None = None,
) -> Iterator[str]:
    """The assistant's next turn, in pieces as they are written."""
    from bloomery.corpus import chat
    from bloomery.generate import stream

    template = template or Template()
    ids, _ = chat.encode(tokenizer, conversation, template.source, add_generation_prompt=True, **template.variables)
    return stream(model, tokenizer, ids, **dataclasses.asdict(sampling))


@dataclass(frozen=True)
class Template:
    """How a model wants a conversation to be written down; the defaults are those of our own tokenizers."""

    source: str | None = None
    variables: dict[str, str] = field(default_factory=dict)


def read_template(folder: Path) -> Template:
    """The chat template of a model folder, with the special tokens its text may name."""
    from bloomery.core.files import read_json
    from bloomery.corpus import tokenizer

    file = folder / "tokenizer_config.json"
    config = read_json(file) if file.is_file() else {}
    named = {name: config.get(name) for name in ("bos_token", "eos_token", "pad_token")}
    texts = {name: token["content"] if isinstance(token, dict) else token for name, token in named.items()}
    return Template(tokenizer.chat_template(folder), {name: text for name, text in texts.items() if text})


def _typed() -> Iterator[str]:
    """Lines typed by the user until an empty one or the end of the input."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if not line:
            return
        yield line
