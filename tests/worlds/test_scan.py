"""What is read from sources: signatures as Python sees them, nothing executed, nothing fatal."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError, EmptyError
from bloomery.worlds.installed_docs import InstalledDocs
from bloomery.worlds.installed_docs.scan import clean, scan


def written(folder: Path, **files: str | bytes) -> Path:
    """A package folder `pack` of the given module sources."""
    root = folder / "pack"
    root.mkdir()
    for name, content in {"__init__": '"""The pack."""', **files}.items():
        data = content if isinstance(content, bytes) else content.encode()
        (root / f"{name}.py").write_bytes(data)
    return root


def test_signatures_are_those_of_the_live_functions(stdlib: InstalledDocs) -> None:
    compared = 0
    for module in (textwrap, inspect, subprocess):
        for entry in stdlib.members[module.__name__]:
            live = getattr(module, entry.name.rpartition(".")[2], None)
            if entry.kind != "function" or not inspect.isfunction(live) or hasattr(live, "__wrapped__"):
                continue
            if (
                live.__module__ != module.__name__
            ):  # torch.package, where something imports it, replaces inspect.getfile
                continue
            assert entry.item is not None
            (function,) = ast.parse(f"def f{entry.item.signature}: pass").body
            assert isinstance(function, ast.FunctionDef)
            ours, theirs = function.args, inspect.getfullargspec(live)
            assert [a.arg for a in ours.posonlyargs + ours.args] == theirs.args
            assert [a.arg for a in ours.kwonlyargs] == theirs.kwonlyargs
            assert (ours.vararg and ours.vararg.arg, ours.kwarg and ours.kwarg.arg) == (theirs.varargs, theirs.varkw)
            assert len(ours.defaults) == len(theirs.defaults or ())
            compared += 1
    assert compared > 60


def test_docstrings_are_those_of_inspect(stdlib: InstalledDocs) -> None:
    texts = {name: text for name, _, text in stdlib.docstrings()}
    for function in (textwrap.wrap, subprocess.run, inspect.cleandoc):
        assert texts[f"{function.__module__}.{function.__name__}"] == inspect.getdoc(function)
    assert texts["textwrap"] == inspect.getdoc(textwrap)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 6), st.text("ab c", max_size=6)), min_size=1, max_size=8))
def test_clean_agrees_with_inspect(lines: list[tuple[int, str]]) -> None:
    text = "\n".join(" " * indent + words for indent, words in lines)
    assert clean(text) == "\n".join(line.rstrip() for line in inspect.cleandoc(text).split("\n")).strip("\n")


def test_class_members(zoo_site: InstalledDocs) -> None:
    zebra = zoo_site.entries["/docs/zoo/animals/Zebra.html"].item
    assert zebra is not None
    assert zebra.signature == '(stripes=7, /, *names, colour="white", **rest)'
    assert zebra.doc == "A striped animal marker-zebra."
    assert [(m.name, m.signature, m.label) for m in zebra.members] == [
        ("run", "(speed)", ""),
        ("stripes", "() -> int", "property"),
        ("of", "(a, b)", "staticmethod"),
        ("default", "(a)", "classmethod"),
        ("Foot", "", ""),
    ]


def test_nothing_is_imported(zoo: Path, zoo_site: InstalledDocs) -> None:
    assert len(zoo_site) > 10
    assert not any(name == "zoo" or name.startswith("zoo.") for name in sys.modules)
    code = (
        "import sys; from bloomery.worlds.installed_docs import InstalledDocs; before = set(sys.modules)\n"
        f"site = InstalledDocs(['numpy.linalg'.partition('.')[0], 'pytest', {str(zoo)!r}])\n"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "assert not new, new\nassert 'pytest' not in sys.modules and 'torch' not in sys.modules\nprint(len(site))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 500


def test_weird_sources_are_counted_not_raised(tmp_path: Path) -> None:
    root = written(
        tmp_path,
        good='def ok():\n    """Fine."""',
        syntax="def broken(:\n",
        python2='print "hello"\n',
        null=b"x = 1\x00\n",
        undecodable=b"# -*- coding: utf-8 -*-\nx = '\xff'\n",
        unknown=b"# -*- coding: klingon -*-\nx = 1\n",
        parentheses="x = " + "(" * 3000 + ")" * 3000,
        recursion="x = " + "-" * 50_000 + "1",
        empty="",
        latin='# -*- coding: latin-1 -*-\n"""Caf\xe9."""\n'.encode("latin-1"),
        bom=b'\xef\xbb\xbf"""With a mark."""\n',
        crlf=b'"""Windows."""\r\ndef f(a,\r\n      b=1):\r\n    """Two lines."""\r\n',
        surrogate='"""Half \\ud800 a pair."""\n',
        escapes='"""A \\d warning."""\n',
        chain="x = " + " + ".join(["1"] * 5000) + "\ndef after():\n    'Still read.'\n",
    )
    (root / "folder.py").mkdir()
    (root / "dangling.py").symlink_to(tmp_path / "nowhere")
    site = InstalledDocs([str(root)])
    skipped = {Path(file).stem for file in site.skipped}
    assert {"syntax", "python2", "null", "undecodable", "unknown"} <= skipped
    assert skipped <= {"syntax", "python2", "null", "undecodable", "unknown", "parentheses", "recursion", "chain"}
    assert all(reason for reason in site.skipped.values())
    docs = {name: text for name, _, text in site.docstrings()}
    assert docs["pack.good.ok"] == "Fine."
    assert docs["pack.latin"] == "Café."
    assert docs["pack.bom"] == "With a mark."
    assert "(a, b=1)" in site.page("/docs/pack/crlf/f.html").html
    for path in site.paths:
        assert site.page(path).html.encode()


def test_a_file_of_a_hundred_thousand_lines(tmp_path: Path) -> None:
    lines = ['"""Generated."""'] + [f"VALUE_{i} = {i}" for i in range(100_000)] + ["def last():", '    """The end."""']
    site = InstalledDocs([str(written(tmp_path, big="\n".join(lines)))])
    html = site.page("/source/pack/big.html").html
    assert html.count("\n") > 100_000
    assert "100,003 lines" in html
    assert 'id="L100002"' in html


def test_classes_nested_deeply(tmp_path: Path) -> None:
    depth = 60
    text = "\n".join(f"{' ' * i}class C{i}:\n{' ' * (i + 1)}'''Level {i} of all.'''" for i in range(depth))
    site = InstalledDocs([str(written(tmp_path, nested=text))])
    assert not site.skipped
    assert f"Level {depth - 1} of all." in site.page("/docs/pack/nested/C0.html").html
    assert sum(1 for _ in site.docstrings()) == depth + 1


def test_a_multi_line_signature_becomes_one_line(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("def f(é='ü',\n      b: dict[str,\n        int] = None):\n    pass\n", encoding="utf-8")
    assert scan("module", file).items["f"].signature == "(é='ü', b: dict[str, int] = None)"


def test_relative_imports(zoo_site: InstalledDocs) -> None:
    module = zoo_site.library.modules["zoo"]
    assert module.imports["feed"] == ("zoo._impl", "feed")
    assert module.imports["animals"] == ("zoo", "animals")
    assert module.stars == ["zoo._impl"]


def test_unknown_package_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'numpy'"):
        InstalledDocs(["numpyy"])
    with pytest.raises(ConfigError, match="no such package"):
        InstalledDocs(["/no/such/folder"])


def test_a_folder_without_modules_is_an_error(tmp_path: Path) -> None:
    with pytest.raises((EmptyError, ConfigError)):
        InstalledDocs([str(tmp_path)])


def test_a_distribution_name_and_a_single_module_file() -> None:
    assert "yaml" in InstalledDocs(["PyYAML"]).library.modules
    assert "six" in InstalledDocs(["six"]).library.modules
