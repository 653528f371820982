"""`bloomery chat`: a conversation on the terminal."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

from bloomery.cli.generate import Sampling, Where, load
from bloomery.cli.options import FLAT, parse, print_json


@dataclass
class Options:
    """Talk to a model folder. An empty line or Ctrl-D ends the conversation, /new starts another.

    When the conversation outgrows the model's positions, the oldest exchanges are left out of what it sees.

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
    from bloomery.generate import Conversation

    begin = functools.partial(
        Conversation,
        model,
        tokenizer,
        system=options.system or None,
        **template_of(options.model),
        **dataclasses.asdict(options.sampling),
    )
    conversation = begin()
    for said in options.message or _typed():
        if said == "/new":
            conversation = begin()
            continue
        for piece in conversation.say(said):
            if not options.json:
                print(piece, end="", flush=True)
        if not options.json:
            print()
    if options.json:
        print_json(conversation.messages)
    return 0


def template_of(folder: Path) -> dict[str, Any]:
    """The chat template of a model folder, with the special tokens its text may name, as `Conversation` takes them."""
    from bloomery.core.files import read_json
    from bloomery.corpus import tokenizer

    file = folder / "tokenizer_config.json"
    config = read_json(file) if file.is_file() else {}
    named = {name: config.get(name) for name in ("bos_token", "eos_token", "pad_token")}
    texts = {name: token["content"] if isinstance(token, dict) else token for name, token in named.items()}
    return {
        "template": tokenizer.chat_template(folder),
        "variables": {name: text for name, text in texts.items() if text},
    }


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
