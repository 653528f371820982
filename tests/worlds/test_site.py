"""The site as a web: every link leads to a page, every page is reachable, modules do not leak into each other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from bloomery.core.errors import DataError
from bloomery.worlds.installed_docs import InstalledDocs, page_links
from bloomery.worlds.installed_docs.prose import plain, summary

VOID = {"meta", "link", "input", "hr", "br"}


class Checker(HTMLParser):
    """Fails on unbalanced tags; gathers visible text, ids and links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.ids: set[str] = set()
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in values:
            self.ids.add(values["id"] or "")
        if tag == "a":
            self.hrefs.append(values["href"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def checked(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert not checker.open
    return checker


def text_of(html: str) -> str:
    return " ".join(" ".join(checked(html).texts).split())


def test_layout_of_the_small_library(zoo_site: InstalledDocs) -> None:
    docs = [path for path in zoo_site.paths if path.startswith("/docs/")]
    assert docs == [
        "/docs/zoo/",
        "/docs/zoo/_vendor/lion/",
        "/docs/zoo/_vendor/lion/roar.html",
        "/docs/zoo/animals/",
        "/docs/zoo/animals/Okapi.html",
        "/docs/zoo/animals/Zebra.html",
        "/docs/zoo/animals/base/",
        "/docs/zoo/animals/base/Base.html",
        "/docs/zoo/animals/gather.html",
        "/docs/zoo/animals/lt.html",
        "/docs/zoo/feed.html",
        "/docs/zoo/wash.html",
    ]
    assert [path for path in zoo_site.paths if path.startswith("/source/")] == [
        "/source/zoo/__init__.html",
        "/source/zoo/_impl.html",
        "/source/zoo/_vendor/lion.html",
        "/source/zoo/animals/__init__.html",
        "/source/zoo/animals/base.html",
    ]
    assert zoo_site.redirects["/docs/zoo/Zebra.html"] == "/docs/zoo/animals/Zebra.html"


def test_pages_show_what_they_should(zoo_site: InstalledDocs) -> None:
    page = zoo_site.page("/docs/zoo/animals/Zebra.html")
    assert (page.kind, page.module, page.title) == ("class", "zoo.animals", "zoo.animals.Zebra")
    for wanted in (
        'Zebra(stripes=7, /, *names, colour="white", **rest)',
        "of(a, b)",
        "marker-run",
        "marker-stripes",
        "marker-foot",
        "marker-stamp",
    ):
        assert wanted in text_of(page.html)
    for hidden in ("Not shown", "private-method", "speed: int"):
        assert hidden not in page.html
    assert '<a href="/docs/zoo/animals/base/Base.html"><code>Base</code></a>' in page.html

    function = zoo_site.page("/docs/zoo/feed.html")
    assert function.module == "zoo"  # written in a private file, belongs to the module that offers it
    assert "feed(animal, amount: float = 1.0, *, at=None) -> bool" in text_of(function.html)
    assert "<pre><code>&gt;&gt;&gt; feed(Zebra(), 2)\nTrue</code></pre>" in function.html
    assert "<dt><code>amount</code></dt><dd><p>how much.</p></dd>" in function.html

    base = zoo_site.page("/docs/zoo/animals/base/Base.html").html
    assert base.count('href="/docs/zoo/feed.html"') == 3  # the word in quotes, the role and the call

    module = zoo_site.page("/docs/zoo/").html
    assert 'Use <a href="/docs/zoo/animals/Zebra.html"><code>zoo.animals.Zebra</code></a>' in module
    okapi = text_of(zoo_site.page("/docs/zoo/animals/Okapi.html").html)
    assert "zoo.animals.Okapi()" in okapi
    assert "Shy relative of giraffes marker-okapi." in okapi  # a docstring assembled in the class body

    source = zoo_site.page("/source/zoo/animals/__init__.html").html
    assert "return</span> a &lt; b &amp; 1" in source
    assert (
        'class <a href="/docs/zoo/animals/Zebra.html">Zebra</a>(<a href="/docs/zoo/animals/base/Base.html">Base</a>)'
        in (re.sub(r"</?span[^>]*>", "", source))
    )


def test_private_unlisted_and_tested_things_are_absent(zoo_site: InstalledDocs) -> None:
    for path in zoo_site.paths:
        if zoo_site.page(path).kind != "source":
            html = zoo_site.page(path).html
            for absent in ("Marker hidden", "Marker unlisted", "Marker test", "private-method"):
                assert absent not in html


def test_no_docstring_appears_on_the_page_of_another_module(zoo_site: InstalledDocs) -> None:
    home: dict[str, str] = {}
    for _, module, text in zoo_site.docstrings():
        for marker in re.findall(r"marker-\w+", text):
            assert home.setdefault(marker, module) == module
    assert len(home) == 17
    for path in zoo_site.paths:
        for marker in set(re.findall(r"marker-\w+", zoo_site.page(path).html)) & set(home):
            assert zoo_site.module_of(path) == home[marker], (path, marker)


def test_stdlib_sentences_stay_in_their_module(stdlib: InstalledDocs) -> None:
    owners: dict[str, set[str]] = {}
    for _, module, text in stdlib.docstrings():
        owners.setdefault(" ".join(text.split()), set()).add(module)
    unique = {
        text: modules for text, modules in owners.items() if len(modules) == 1 and len(text) > 60 and "`" not in text
    }
    firsts = {text[:60]: next(iter(modules)) for text, modules in unique.items()}
    for path in stdlib.paths[::7]:
        page = stdlib.page(path)
        if page.kind in ("module", "class", "function", "index", "home"):
            text = text_of(page.html)
            for at in range(0, max(len(text) - 60, 0)):
                owner = firsts.get(text[at : at + 60])
                if owner is not None and owner != page.module:
                    # the same opening may be written in two modules on purpose
                    said = [m for t, ms in owners.items() if text[at : at + 60] in t for m in ms]
                    assert page.module in said, (path, owner, text[at : at + 60])


def test_every_link_resolves_and_every_page_is_reachable(zoo_site: InstalledDocs) -> None:
    anchors = {path: checked(zoo_site.page(path).html) for path in zoo_site.paths}
    for path, checker in anchors.items():
        for href in checker.hrefs:
            target, _, anchor = href.partition("#")
            assert (target or path) in anchors, (path, href)
            if anchor:
                assert anchor in anchors[target or path].ids, (path, href)
    _assert_reachable(zoo_site)


def test_stdlib_web_is_well_formed_and_connected(stdlib: InstalledDocs) -> None:
    for path in stdlib.paths[::11]:
        page = stdlib.page(path)
        checker = checked(page.html)
        assert f"<title>{unescape(page.title)}"[:20] in unescape(page.html)
        assert all(href.partition("#")[0] in stdlib.entries for href in checker.hrefs if not href.startswith("#"))
    _assert_reachable(stdlib)


def _assert_reachable(site: InstalledDocs) -> None:
    sources, targets = site.links()
    assert sources.dtype == targets.dtype == np.int32
    assert (sources != targets).all()
    neighbours: dict[int, list[int]] = {}
    for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
        neighbours.setdefault(source, []).append(target)
    home = site.paths.index("/")
    seen, frontier = {home}, [home]
    while frontier:
        for target in neighbours.get(frontier.pop(), ()):
            if target not in seen:
                seen.add(target)
                frontier.append(target)
    assert seen == set(range(len(site)))


def test_links_are_those_of_the_pages(zoo_site: InstalledDocs) -> None:
    sources, targets = zoo_site.links()
    path = "/docs/zoo/animals/"
    row = {zoo_site.paths[t] for t in targets[sources == zoo_site.paths.index(path)]}
    assert row == set(page_links(zoo_site.page(path).html)) - {path}


def test_stdlib_is_what_a_reader_expects(stdlib: InstalledDocs) -> None:
    assert len(stdlib) > 5000
    assert not [file for file in stdlib.skipped if "lib2to3" not in file]
    for name in ("os.path.join", "json.dumps", "collections.deque", "math.sqrt", "builtins.len", "itertools.chain",
                 "functools.partial", "pathlib.Path", "collections.abc.Mapping", "struct.pack"):  # fmt: skip
        path = stdlib.find_name(name)
        assert path is not None, name
        assert stdlib.page(path).html
    method = "/docs/json/decoder/JSONDecoder.html#json.decoder.JSONDecoder.decode"
    assert stdlib.find_name("json.JSONDecoder.decode") == stdlib.find_name("json.decoder.JSONDecoder.decode") == method
    assert stdlib.find_name("json.JSONDecoder") == "/docs/json/decoder/JSONDecoder.html"
    statistics = stdlib.statistics()
    assert statistics.docs_bytes > 1_000_000
    assert statistics.code_bytes > 4 * statistics.docs_bytes
    assert sum(statistics.pages.values()) == len(stdlib)
    assert statistics.documented <= statistics.names
    assert statistics.pages["source"] > 400
    assert not any("/tests/" in path or "/test/" in path for path in stdlib.paths)


def test_compiled_docstrings_that_numpy_attaches() -> None:
    site = InstalledDocs(["numpy"])
    html = text_of(site.page("/docs/numpy/array.html").html)
    assert "Create an array." in html
    assert site.module_of("/docs/numpy/array.html") == "numpy"
    assert "Sum of array elements over a given axis." in text_of(site.page("/docs/numpy/sum.html").html)


def test_questions_are_true(stdlib: InstalledDocs) -> None:
    docs = {name: (module, " ".join(plain(text).split())) for name, module, text in stdlib.docstrings()}
    said = Counter((name.rpartition(".")[0], plain(summary(text))) for name, _, text in stdlib.docstrings())
    templates: Counter[str] = Counter()
    for question in stdlib.questions():
        module, text = docs[question.name]
        assert question.module == module
        templates[question.question.split("`")[0]] += 1
        if question.question.startswith(("Which function of", "Which class of", "Name the")):
            asked = question.question.partition(": ")[2]
            assert question.answer == f"`{question.name}`"
            assert asked in text
            assert said[question.name.rpartition(".")[0], asked] == 1  # one right answer
        elif question.answer.startswith(f"`{question.name}("):
            item = stdlib.entries[stdlib.names[question.name].partition("#")[0]].item
            assert item is not None
            if item.name == question.name.rpartition(".")[2]:
                assert question.answer == f"`{question.name}{item.signature}`"
        else:
            assert question.answer in text
            assert f"`{question.name}`" in question.question
    assert templates.total() > 10_000
    assert len(templates) > 10


def test_the_question_of_the_readme(stdlib: InstalledDocs) -> None:
    about = [q for q in stdlib.questions() if q.name == "os.path.join"]
    assert any(q.answer.startswith("Join two or more pathname components") for q in about)
    assert any("os.path.join(a, *p)" in q.answer for q in about)


def test_unknown_page_suggests_a_near_one(zoo_site: InstalledDocs) -> None:
    with pytest.raises(DataError, match=r"did you mean '/docs/zoo/feed.html'"):
        zoo_site.page("/docs/zoo/fed.html")


def test_search_ranks_whole_names_first(stdlib: InstalledDocs) -> None:
    found = stdlib.search("dump")
    assert found[0].endswith(".dump")
    assert any(name.endswith(".dumps") for name in found)
    assert stdlib.search("  ") == []


def test_same_site_in_every_process(zoo: Path) -> None:
    code = (
        "import hashlib, sys\nfrom bloomery.worlds.installed_docs import InstalledDocs\n"
        "site = InstalledDocs(['json', 'collections', 'email', sys.argv[1]])\nh = hashlib.sha256()\n"
        "for p in site.paths: h.update(site.page(p).html.encode())\n"
        "for q in site.questions(): h.update(repr(q).encode())\n"
        "for d in site.docstrings(): h.update(repr(d).encode())\n"
        "for a in site.links(): h.update(a.tobytes())\n"
        "print(len(site), h.hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code, str(zoo)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(outputs) == 1
    assert int(outputs.pop().split()[0]) > 100


def test_source_that_vanished_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    file = tmp_path / "pack" / "__init__.py"
    file.write_text('"""Here now."""')
    site = InstalledDocs([str(file.parent)])
    file.unlink()
    assert "not there any more" in site.page("/source/pack/__init__.html").html
