"""Questions and answers made from docstrings: what is asked is written in the sources, so every answer is true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bloomery.core.hashing import hash64
from bloomery.worlds.installed_docs.prose import plain, summary
from bloomery.worlds.installed_docs.scan import Item

if TYPE_CHECKING:
    from bloomery.worlds.installed_docs.site import InstalledDocs

WHAT = {
    "function": ("What does `{name}` do?", "What is `{name}` for?", "Explain `{name}` in one sentence."),
    "class": ("What is the class `{name}`?", "What is `{name}` for?", "Describe the class `{name}` in one sentence."),
    "module": ("What is the module `{name}` for?", "What does the module `{name}` offer?"),
}
CALL = ("How is `{name}` called?", "What is the signature of `{name}`?", "Which arguments does `{name}` take?")
WHICH = ("Which {kind} of `{module}` does this: {text}", "Name the {kind} in `{module}` with this description: {text}")
MIN_SUMMARY, MAX_SIGNATURE = 15, 200  # characters: shorter sentences and longer signatures make poor answers


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its answer about the public `name`, taken from `module`'s documentation."""

    question: str
    answer: str
    name: str
    module: str


def questions(site: InstalledDocs) -> Iterator[Question]:
    """What a name does, how it is called, and which name does it; the wording depends on the name alone."""
    for module in sorted(entry.name for entry in site.entries.values() if entry.kind == "module"):
        entry = site.entries[site.names[module]]
        assert entry.source is not None
        if text := _usable(entry.source.doc):
            yield Question(_pick(WHAT["module"], module).format(name=module), text, module, entry.key)
        members = [(m, m.item) for m in site.members.get(module, ()) if m.item is not None]
        said = Counter(_usable(item.doc) for _, item in members)
        for member, item in members:
            if text := _usable(item.doc):
                yield Question(
                    _pick(WHAT[item.kind], member.name).format(name=member.name), text, member.name, member.key
                )
                if said[text] == 1 and item.name.lower() not in text.lower():
                    asked = _pick(WHICH, member.name).format(kind=item.kind, module=module, text=text)
                    yield Question(asked, f"`{member.name}`", member.name, member.key)
            yield from _call(member.name, member.key, item)
            yield from _methods(member.name, member.key, item)


def _methods(owner: str, key: str, item: Item) -> Iterator[Question]:
    for member in item.members:
        name = f"{owner}.{member.name}"
        if text := _usable(member.doc):
            yield Question(_pick(WHAT[member.kind], name).format(name=name), text, name, key)
        yield from _call(name, key, member)
        yield from _methods(name, key, member)


def _call(name: str, key: str, item: Item) -> Iterator[Question]:
    """Signatures are asked of documented callables only: the others are rarely meant for users."""
    if item.signature and item.doc and item.label != "property" and len(item.signature) <= MAX_SIGNATURE:
        yield Question(_pick(CALL, name).format(name=name), f"`{name}{item.signature}`", name, key)


def _usable(doc: str) -> str:
    text = plain(summary(doc))
    return text if len(text) >= MIN_SUMMARY and not text.endswith("…") else ""


def _pick(templates: tuple[str, ...], name: str) -> str:
    return templates[hash64(name) % len(templates)]
