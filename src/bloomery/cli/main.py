"""`bloomery COMMAND …`: finds the command, imports only that one, and turns errors into one line and an exit code.

Exit codes: 0 success, 1 failure (also: a claim of a finished run does not hold), 2 bad input, 130 Ctrl-C.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from bloomery.core.errors import BloomeryError, nearest

# command -> what it does; the module bloomery.cli.<command> has main(argv) -> exit code
COMMANDS = {
    "systems": "list the systems that are here",
    "run": "run a system: its paper's claim beside its baseline, with a report",
    "claims": "what the runs on this machine have shown",
    "crawl": "fetch a site politely into WARC files",
    "curate": "turn WARC, JSONL, Parquet or text into a clean corpus",
    "inspect": "what a curation run dropped and why, with examples",
    "quality": "train the classifier that picks the pages worth training on",
    "tokenizer": "train a tokenizer, or look at one",
    "train": "pretrain a decoder from a YAML file (works under torchrun)",
    "generate": "continue prompts with a model folder",
    "chat": "talk to a model folder",
    "serve": "a model folder behind OpenAI's protocol, for many clients at once",
    "evaluate": "put tasks to a model folder: accuracy, exact match, bits per byte",
    "grow": "make a model folder deeper by running some of its layers twice",
    "convert": "rewrite a Hugging Face folder in another dtype or sharding",
    "checkpoint": "inspect, verify, compare, reshard and convert checkpoints",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("BLOOMERY_DEBUG", "") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except BloomeryError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has gone, e.g. `bloomery systems | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as error:  # --help of a command
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except Exception as error:
        if debug:
            raise
        return _fail(f"unexpected {type(error).__name__}: {error} (run again with --debug for the traceback)", 1)


def usage() -> str:
    """What `bloomery --help` prints."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return (
        "usage: bloomery COMMAND …\n\n"
        "From raw web pages to a model, one readable part at a time.\n\n"
        f"commands:\n{commands}\n\n"
        "options:\n  --help     this text; `bloomery COMMAND --help` explains one command\n"
        "  --version  print the version\n  --debug    show the traceback of an error (or set BLOOMERY_DEBUG=1)\n\n"
        "example:\n  bloomery run end_to_end --preset smoke\n"
    )


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    name, *rest = arguments
    if name == "--version":
        from bloomery import __version__

        print(f"bloomery {__version__}")
        return 0
    if name not in COMMANDS:
        return _fail(f"unknown command {name!r} ({nearest(name, COMMANDS)})", 2)
    from bloomery.core.log import setup

    setup()
    command = importlib.import_module(f"bloomery.cli.{name}")
    return int(command.main(rest))


def _fail(message: str, code: int) -> int:
    print(f"bloomery: {' '.join(message.split())}", file=sys.stderr)
    return code
