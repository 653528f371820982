"""`bloomery serve`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from bloomery.cli.chat import template_of
from bloomery.cli.generate import Where, load
from bloomery.cli.options import FLAT, parse
from bloomery.core.errors import ConfigError, require


@dataclass
class Options:
    """Serve a model folder to programs that speak OpenAI's protocol: /v1/chat/completions, /v1/completions, /v1/models;
    /health tells how busy it is. Ctrl-C lets the answers that are being written end.

    Example:
      bloomery serve runs/mine/model --port 8000
      BLOOMERY_API_KEY=secret bloomery serve runs/mine/model --host 0.0.0.0
    """

    model: Annotated[Path, Positional]
    """Model folder with tokenizer.json."""
    host: str = "127.0.0.1"
    """Address to listen on; only this machine can reach the default."""
    port: int = 8000
    """0 takes a free one and says which."""
    name: str = ""
    """What clients call the model; the folder's name where not given."""
    api_key: str = ""
    """Key that clients must send; better given as BLOOMERY_API_KEY, which other users of the machine do not see."""
    max_batch: int = 16
    """Answers written at the same time."""
    max_queue: int = 256
    """Answers that may wait; more are refused with status 429."""
    max_len: int | None = None
    """Tokens of a prompt with its answer; the model's positions where not given."""
    max_tokens: int = 1024
    """Most new tokens a request may ask for."""
    max_body: int = 1_048_576
    """Most bytes of a request."""
    grace: int = 30
    """Seconds that running answers have to end at a shutdown."""
    where: Annotated[Where, FLAT] = field(default_factory=Where)


def main(argv: Sequence[str]) -> int:
    """Serve until a signal."""
    options = parse(Options, argv, prog="bloomery serve")
    for package in ("fastapi", "uvicorn"):
        require(package, "serve")
    if options.grace < 0:
        raise ConfigError(f"grace is {options.grace}", fix="it must be at least 0")
    from bloomery.generate.engine import Engine
    from bloomery.generate.openai_api import Limits
    from bloomery.generate.server import Server, create_app

    limits = Limits(body_bytes=options.max_body, tokens=options.max_tokens)
    model, tokenizer = load(options.model, options.where)
    engine = Engine(model, tokenizer, max_batch=options.max_batch, max_queue=options.max_queue, max_len=options.max_len)
    name = options.name or options.model.resolve().name
    key = options.api_key or os.environ.get("BLOOMERY_API_KEY", "")
    app = create_app(engine, name, api_key=key, limits=limits, **template_of(options.model))
    server = Server(app, host=options.host, port=options.port, grace=options.grace)
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn takes them over and hands them back when it has ended
        signal.signal(number, lambda *_: None)
    print(f"bloomery: serving {name!r} on {server.url}/v1 (Ctrl-C ends it)", file=sys.stderr, flush=True)
    server.run()
    return 0
