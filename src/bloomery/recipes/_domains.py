"""Four domains that every machine has, from varied to formulaic: docstrings, source code, sums, log lines."""

from __future__ import annotations

from bloomery.core.seeds import rng
from bloomery.corpus.split import split_of
from bloomery.worlds.arithmetic import generate
from bloomery.worlds.installed_docs import InstalledDocs
from bloomery.worlds.stdlib_source import sources

HELD_OUT = 0.1
HELD_OUT_BYTES = 60_000
BLOCK = 1_000
LEVELS = ("INFO", "WARNING", "DEBUG", "ERROR")
PARTS = ("scheduler", "network", "storage", "auth", "worker")
EVENTS = ("started", "stopped", "timed out after {} ms", "retried {} times", "sent {} bytes", "lost connection {}")


def domains(seed: int, limit: int) -> dict[str, tuple[list[str], list[str]]]:
    """By name: texts to train on, in a random order, and texts that are held out."""
    split = sources(seed, HELD_OUT)
    docs: dict[str, list[str]] = {"train": [], "validation": []}
    for _, module, text in InstalledDocs(["stdlib"]).docstrings():
        docs[split_of(module, seed, HELD_OUT)].append(text)
    count = max(200, limit // 40)
    sums = [f"{p.prompt} {p.answer}\n" for p in (generate("add", 3, seed, i) for i in range(count))]
    pairs = {
        "docstrings": (docs["train"], docs["validation"]),
        "source": ([f.text for f in split.train], [f.text for f in split.held_out]),
        "sums": _cut(sums),
        "logs": _cut([_log_line(seed, i) for i in range(count)]),
    }
    return {name: (_shuffled(train, seed), _limited(_shuffled(held, seed))) for name, (train, held) in pairs.items()}


def log_page(seed: int, number: int) -> str:
    """Twenty-five log lines."""
    return "".join(_log_line(seed, 25 * number + i) for i in range(25))


def _log_line(seed: int, number: int) -> str:
    random = rng(seed, "log", number)
    level, part, event = (choices[random.integers(len(choices))] for choices in (LEVELS, PARTS, EVENTS))
    second = number * 7 % 86_400
    clock = f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"
    return f"{clock} {level} {part}: {event.format(random.integers(10, 5_000))}\n"


def _cut(lines: list[str]) -> tuple[list[str], list[str]]:
    """Pages of forty lines, the last tenth held out."""
    pages = ["".join(lines[i : i + 40]) for i in range(0, len(lines), 40)]
    border = max(1, round(len(pages) * (1 - HELD_OUT)))
    return pages[:border], pages[border:] or pages[-1:]


def _shuffled(texts: list[str], seed: int) -> list[str]:
    """Blocks of at most 1,000 characters, as in the authors' experiments, in a random order."""
    blocks = [text[i : i + BLOCK] for text in texts for i in range(0, len(text), BLOCK)]
    return [blocks[i] for i in rng(seed, "blocks").permutation(len(blocks))]


def _limited(texts: list[str]) -> list[str]:
    """The first texts, about `HELD_OUT_BYTES` of them."""
    size, kept = 0, list[str]()
    for text in texts:
        if size > HELD_OUT_BYTES:
            break
        kept.append(text)
        size += len(text)
    return kept
