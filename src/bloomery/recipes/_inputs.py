"""What the main job reads: the embedded web and what is known of it, a real site, or files.

The crawl stage of `end_to_end` leaves a folder; `Inputs` is how the later stages, and other recipes that start from
the same pages, look at it.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from bloomery.core.files import atomic_file, read_json, write_json
from bloomery.core.hashing import file_digest
from bloomery.core.seeds import derive, rng

if TYPE_CHECKING:
    from bloomery.corpus import Split
    from bloomery.worlds.installed_docs import InstalledDocs

HELD_OUT = 0.1  # share of the modules (or documents) that no model sees
MODULES, DOCSTRINGS, DOCUMENTED, QUESTIONS = "modules.json", "docstrings.jsonl", "documented.jsonl", "questions.jsonl"
MIN_DOCSTRING = 200  # characters: one-line docstrings say little about prose


def write_truth(site: InstalledDocs, folder: Path, seed: int) -> None:
    """Note what is known of the embedded web, each with its side of the split.

    The module of every page; the docstrings as they stand in the sources; the same docstrings as a reader sees them,
    on the pages that document them; questions with their answers.
    """
    from bloomery.corpus.split import split_of
    from bloomery.web import main_text

    def side(module: str) -> str:
        return split_of(module, seed, HELD_OUT)

    write_json(folder / MODULES, {path: site.module_of(path) for path in site.paths})
    long = [(name, side(module), text) for name, module, text in site.docstrings() if len(text) >= MIN_DOCSTRING]
    _write_lines(folder / DOCSTRINGS, ({"id": name, "text": text, "split": s} for name, s, text in long))
    paths = ((site.find_name(name), s) for name, s, _ in long)
    shown = ((path, main_text(site.page(path).html), s) for path, s in paths if path and "#" not in path)
    _write_lines(folder / DOCUMENTED, ({"id": path, "text": text, "split": s} for path, text, s in shown))
    asked = ({"question": q.question, "answer": q.answer, "split": side(q.module)} for q in site.questions())
    _write_lines(folder / QUESTIONS, asked)


def usual_port(seed: int) -> int:
    """The port that runs of one seed serve the embedded web on, or 0 (any) while another program has it.

    Documents are ordered by address, so the same port means the same numbers in every run.
    """
    port = 20_000 + derive(seed, "port") % 10_000
    with socket.socket() as probe:
        return 0 if probe.connect_ex(("127.0.0.1", port)) == 0 else port


@dataclass(frozen=True)
class PageModule:
    """Split key of a page of the embedded web: the module it documents (from `modules.json`)."""

    table: Path
    _modules: dict[str, str] = field(default_factory=dict, compare=False, repr=False)  # read once per process

    def __call__(self, url: str, meta: Mapping[str, str]) -> str:
        """The module; for a page about all of them its own path."""
        if not self._modules:
            self._modules.update(read_json(self.table))
        path = urlsplit(url).path
        return self._modules.get(path) or path

    def fingerprint(self) -> str:
        """Content of the table."""
        return file_digest(self.table)

    def __reduce__(self) -> tuple[Any, ...]:
        return (PageModule, (self.table,))


class Inputs:
    """The files to read and, where the pages are the embedded web, the truth about them."""

    def __init__(self, folder: Path, files: Sequence[Path], embedded: bool) -> None:
        self.folder, self.files, self.embedded = folder, list(files), embedded

    @property
    def held_out_name(self) -> str:
        """What the models are compared on."""
        return "documentation" if self.embedded else "documents"

    @property
    def note(self) -> str:
        """How the held-out text was kept out of training, for the claim."""
        if self.embedded:
            return "held out: documentation of modules none of whose pages is trained on, near-duplicates removed"
        return "held out: curated documents that are not trained on"

    def split(self, seed: int) -> Split:
        """The step that tells training documents from held-out ones."""
        from bloomery.corpus import Split

        by: Any = PageModule(self.folder / MODULES) if self.embedded else "url"  # the same in both corpora, unlike ids
        return Split(validation=HELD_OUT, by=by, seed=seed)

    def reader(self, extract: Literal["main", "full"]) -> Callable[..., Iterator[Any]]:
        """Reads a file as documents; of web pages the "main" text or the "full" visible text."""
        from bloomery.web import read_documents

        return partial(read_documents, extract=extract)

    def good_texts(self, count: int) -> list[str]:
        """Examples of what the corpus is curated for: docstrings of training modules; none for other inputs."""
        if not self.embedded:
            return []
        texts = [row["text"] for row in _read_lines(self.folder / DOCSTRINGS) if row["split"] == "train"]
        return _sample(texts, count)

    def page_texts(self, count: int, seed: int) -> list[str]:
        """A sample of what the pages say as they come, from the training side."""
        from bloomery.corpus import texts

        split = self.split(seed)
        found: list[str] = []
        for batch in chain.from_iterable(map(self.reader("full"), self.files)):
            sides = split(batch).column("split").to_pylist()
            found += [text for text, side in zip(texts(batch).to_pylist(), sides, strict=True) if side == "train"]
        return _sample([text for text in found if text.strip()], count)

    def held_out_texts(self, curated: Path, folder: Path) -> list[str]:
        """Good text that no model has seen, in a random order that is always the same.

        Of the embedded web: documented things of held-out modules, as a reader sees them, unless they are
        (near-)duplicates of what a training module says.
        """
        from bloomery import corpus

        if not self.embedded:
            return _sample(list(texts_of(curated, "validation")))
        for number, side in enumerate(("train", "validation")):  # duplicates keep the earlier file's copy
            rows = (row for row in _read_lines(self.folder / DOCUMENTED) if row["split"] == side)
            _write_lines(folder / f"{number}.jsonl", rows)
        files = [folder / "0.jsonl", folder / "1.jsonl"]
        corpus.run([corpus.ExactDedup(), corpus.NearDedup(threshold=0.6)], files, folder / "unique", quiet=True)
        unique = chain.from_iterable(map(corpus.read_documents, sorted((folder / "unique").glob("*1*.parquet"))))
        return _sample([text for batch in unique for text in corpus.texts(batch).to_pylist()])

    @cached_property
    def _questions(self) -> list[dict[str, str]]:
        return list(_read_lines(self.folder / QUESTIONS)) if self.embedded else []

    def questions(self, side: str) -> list[dict[str, str]]:
        """Questions (`question`, `answer`) about training or held-out modules, shuffled; none for other inputs."""
        return _sample([row for row in self._questions if row["split"] == side])


def texts_of(corpus_folder: Path, side: str) -> Iterator[str]:
    """The texts of a curated folder's documents on one side of the split."""
    import pyarrow.compute as pc

    from bloomery.corpus import read_documents, texts

    for file in sorted(corpus_folder.glob("*.parquet")):
        for batch in read_documents(file):
            yield from texts(batch.filter(pc.equal(batch.column("split"), side))).to_pylist()


def take(texts: Iterable[str], size: int) -> list[str]:
    """Texts from the beginning, up to about `size` characters."""
    taken: list[str] = []
    for text in texts:
        if size <= 0:
            break
        taken.append(text)
        size -= len(text)
    return taken


def _sample(items: list[Any], count: int | None = None) -> list[Any]:
    """Up to `count` items in a random order that depends on nothing but their number."""
    order = rng(0, "sample").permutation(len(items))
    return [items[i] for i in order[:count]]


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with atomic_file(path, "w") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)
