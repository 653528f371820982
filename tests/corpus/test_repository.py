"""Repositories as documents: the order as a property, imports against grimp and against each language's rules."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bloomery
from bloomery.corpus import NearDedup, repository, run
from bloomery.corpus.code_filters import CodeFormat, CodeShape
from bloomery.corpus.documents import texts
from bloomery.corpus.repository import PythonImport, dependencies, join, order, path_comment, python_imports
from bloomery.corpus.steps import kept

NAMES = ["a", "b/c", "b/d", "e", "f", "g", "b/h/i"]
graphs = st.dictionaries(st.sampled_from(NAMES), st.sets(st.sampled_from([*NAMES, "outside"]), max_size=4), max_size=7)


# --------------------------------------------------------------------------------------------------------- the order


def reachable(depends, start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for other in depends.get(waiting.pop(), ()):
            if other in depends and other not in seen:
                seen.add(other)
                waiting.append(other)
    return seen


@given(graphs, st.randoms())
def test_dependencies_come_first_unless_they_depend_back(depends, random):
    done = order(depends)
    assert sorted(done) == sorted(depends)
    place = {path: i for i, path in enumerate(done)}
    for path in depends:
        for other in reachable(depends, path):
            if path not in reachable(depends, other):
                assert place[other] < place[path] or cyclic_above(depends, other)
    shuffled = list(depends)
    random.shuffle(shuffled)
    assert order({path: depends[path] for path in shuffled}) == done


def cyclic_above(depends, path: str) -> bool:
    """Whether `path` rests on a cycle, which may have held it back."""
    return any(other in reachable(depends, other) for other in {path, *reachable(depends, path)})


@given(graphs)
def test_the_order_is_that_of_the_algorithm_read_plainly(depends):
    depends = {path: {o for o in others if o in depends and o != path} for path, others in depends.items()}
    left, done = set(depends), []
    while left:  # groups by their first path, then fewest missing dependencies, then the path
        links = {p: {q for q in depends if q in depends[p] or p in depends[q]} for p in depends}
        start = min(left)
        group, waiting = {start}, [start]
        while waiting:
            new = links[waiting.pop()] - group
            group |= new
            waiting += new
        while group:
            path = min(group, key=lambda p: (len(depends[p] - set(done)), p))
            done.append(path)
            group.remove(path)
            left.remove(path)
    assert order(depends) == done


def test_a_cycle_is_broken_at_the_file_with_the_fewest_dependencies_then_by_path():
    assert order({"a": {"b", "c"}, "b": {"a"}, "c": {"a"}}) == ["b", "a", "c"]
    assert order({"b": {"a"}, "a": {"b"}}) == ["a", "b"]
    assert order({"z": set(), "main": {"util"}, "util": set(), "a": {"z"}}) == ["z", "a", "util", "main"]
    assert order({}) == []


def test_a_long_chain_and_a_star_are_ordered_quickly():
    chain = {f"{i:06}": {f"{i - 1:06}"} for i in range(1, 50_000)}
    star = {"hub": set(), **{f"{i:06}": {"hub"} for i in range(50_000)}}
    began = time.process_time()
    assert order(chain) == sorted(chain)
    assert order(star)[0] == "hub"
    assert time.process_time() - began < 20


# ------------------------------------------------------------------------------------------------------------ Python


def test_imports_of_this_package_are_those_that_grimp_finds():
    grimp = pytest.importorskip("grimp")
    root = Path(bloomery.__file__).parent
    files = {str(p.relative_to(root.parent)): p.read_text("utf-8") for p in sorted(root.rglob("*.py"))}
    graph = grimp.build_graph("bloomery", cache_dir=None)

    def module(path: str) -> str:
        return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")

    found = dependencies(files)
    assert sum(map(len, found.values())) > 300
    for path, others in found.items():
        assert {module(other) for other in others} == graph.find_modules_directly_imported_by(module(path)), path


PACKAGE = {
    "src/pkg/__init__.py": "from .core import thing\n",
    "src/pkg/core.py": "import os, json\n",
    "src/pkg/json.py": "",
    "src/pkg/sub/__init__.py": "",
    "src/pkg/sub/deep.py": "from .. import core\nfrom ..core import x\nfrom . import no\nfrom ... import nothing\n",
    "scripts/run.py": "import pkg\nimport tools\nfrom pkg.sub import deep, other\nimport numpy\n",
    "scripts/tools.py": "import pkg.sub.deep as d\n",
    "tests/tools.py": "",
}


def test_python_names_are_resolved_as_python_does():
    found = dependencies(PACKAGE)
    assert found["src/pkg/__init__.py"] == {"src/pkg/core.py"}
    assert found["src/pkg/core.py"] == set()  # json is the standard library's, not the one inside the package
    assert found["src/pkg/sub/deep.py"] == {"src/pkg/core.py", "src/pkg/sub/__init__.py"}
    assert found["scripts/run.py"] == {
        "src/pkg/__init__.py",
        "scripts/tools.py",  # the nearer of two
        "src/pkg/sub/deep.py",
        "src/pkg/sub/__init__.py",
    }
    assert found["scripts/tools.py"] == {"src/pkg/sub/deep.py"}
    done = order(found)
    assert done.index("src/pkg/core.py") < done.index("src/pkg/sub/deep.py") < done.index("scripts/run.py")


def test_a_file_that_does_not_parse_is_searched():
    text = 'import a.b, c as d\nfrom ..e import f, g as h  # why\nfrom . import (i, j)\nfrom k import *\nprint "2"\n'
    found = [
        PythonImport(0, "a.b", ()),
        PythonImport(0, "c", ()),
        PythonImport(2, "e", ("f", "g")),
        PythonImport(1, "", ("i", "j")),
    ]
    assert python_imports(text) == [*found, PythonImport(0, "k", ())]
    assert python_imports(text.replace('print "2"', "")) == [*found, PythonImport(0, "k", ("*",))]


@pytest.mark.parametrize(
    "text",
    ["(" * 50_000, "-" * 100_000 + "1", "a" + ".b" * 100_000, "[" * 90 + "1", "\x00import os", "x = '\\d'\n", "\udc80",
     "f(" * 3000, "if 1:\n" + " " * 100_000, "lambda: " * 20_000],
)  # fmt: skip
def test_no_python_file_is_too_odd(text):
    assert isinstance(python_imports(text + "\n"), list)


@pytest.mark.parametrize(
    "unit",
    ["from ", "from ." + "." * 30, "import a,", "import ", " ", "\t\n", "#include ", '#include "', "import static ",
     "a.", 'import "', "require(", "from '", "import java.", "x" * 50 + " "],
)  # fmt: skip
def test_time_grows_with_the_length_and_no_faster(unit):
    def seconds(size: int) -> float:
        text = "print 'not python 3'\n" + unit * (size // len(unit))
        began = time.process_time()
        dependencies({f"x.{suffix}": text for suffix in ("py", "c", "ts", "java", "go")})
        return time.process_time() - began

    seconds(1000)
    short = min(seconds(20_000) for _ in range(3))
    assert seconds(320_000) < 80 * max(short, 2e-3)  # 16 times the text; quadratic time would be 256 times as long


# --------------------------------------------------------------------------------------------------- other languages


def test_c_includes():
    files = {
        "src/main.c": '#include <stdio.h>\n#include "util.h"\n  # include <lib/api.h>\n#include "../inc/x.h"\n',
        "src/util.h": '#include "missing.h"\n',
        "inc/x.h": "",
        "include/lib/api.h": '#include "lib/types.h"\n',
        "include/lib/types.h": "",
        "compat/stdio.h": "",  # not where <stdio.h> is looked for
        "other/util.h": "",
    }
    found = dependencies(files)
    assert found["src/main.c"] == {"src/util.h", "include/lib/api.h", "inc/x.h"}
    assert found["include/lib/api.h"] == {"include/lib/types.h"}
    assert found["src/util.h"] == set()


def test_javascript_and_typescript():
    files = {
        "app/main.ts": "import { a } from './a'\nexport * from \"./lib\";\nimport R from 'r'\nimport '../side.js'\n",
        "app/a.tsx": "const b = require('./b.json'); const c = await import(\n  './lib/c.js'\n)",
        "app/b.json": "{}",
        "app/lib/index.ts": "import up from '..'",
        "app/lib/c.ts": "",
        "app/index.js": "",
        "side.js": "",
    }
    found = dependencies(files)
    assert found["app/main.ts"] == {"app/a.tsx", "app/lib/index.ts", "side.js"}
    assert found["app/a.tsx"] == {"app/b.json", "app/lib/c.ts"}
    assert found["app/lib/index.ts"] == {"app/index.js"}


def test_java_and_go():
    files = {
        "src/main/java/org/x/App.java": "import org.x.util.Tool;\n"
        "import static org.x.util.Names.ONE;\nimport org.x.model.*;\n",
        "src/main/java/org/x/util/Tool.java": "import java.util.List;\n",
        "src/main/java/org/x/util/Names.java": "",
        "src/main/java/org/x/model/User.java": "",
        "cmd/main.go": 'import (\n\t"fmt"\n\tk "github.com/u/repo/pkg/kit"\n)\nimport "example.org/else/where"\n',
        "pkg/kit/kit.go": "",
        "pkg/kit/more.go": "",
        "pkg/kit/README.md": "",
        "fmt/fmt.go": "",
    }
    found = dependencies(files)
    base = "src/main/java/org/x"
    assert found[f"{base}/App.java"] == {f"{base}/{n}.java" for n in ("util/Tool", "util/Names", "model/User")}
    assert found[f"{base}/util/Tool.java"] == set()
    assert found["cmd/main.go"] == {"pkg/kit/kit.go", "pkg/kit/more.go"}


def test_a_name_that_very_many_files_could_mean_is_nobodys():
    files = {f"{i}/config.h": "" for i in range(65)} | {"main.c": '#include "config.h"\n'}
    assert dependencies(files)["main.c"] == set()
    del files["64/config.h"]
    assert dependencies(files)["main.c"] == {"0/config.h"}


# ---------------------------------------------------------------------------------------------------------- documents


def test_the_joined_text():
    files = {
        "main.py": "import util\nutil.go()\n\n\n",
        "util.py": "def go(): ...",
        "site/a.css": "p {}\n",
        "x.odd": "",
    }
    assert join(files) == (
        "# util.py\ndef go(): ...\n\n# main.py\nimport util\nutil.go()\n\n/* site/a.css */\np {}\n\n# x.odd\n\n"
    )


@pytest.mark.parametrize(
    ("path", "line"),
    [("a/b.py", "# a/b.py"), ("a.CPP", "// a.CPP"), ("q.sql", "-- q.sql"), ("i.html", "<!-- i.html -->"),
     ("Makefile", "# Makefile"), ("evil\n--> \r\n.html", "<!-- evil -- > .html -->"), ("*/x.css", "/* * /x.css */")],
)  # fmt: skip
def test_path_comments_stay_one_comment(path, line):
    assert path_comment(path) == line


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return path


def file(repo: str | None, path: str, text: str) -> dict:
    return {"text": text, "meta": {"path": path} | ({"repo": repo} if repo else {})}


def test_from_files_to_repositories_without_copies(tmp_path: Path):
    body = "def function_number_{0}(value):\n    total = value + {0}\n    return total * {0}\n"
    library = "".join(body.format(i) for i in range(30))
    rows = []
    for repo in ("original", "fork", "other"):
        code = (
            library if repo != "other" else library.replace("value", "x").replace("total", "y").replace("function", "f")
        )
        rows += [file(repo, "main.py", f"import lib\nprint(lib.function_number_1(2), '{repo}')\n")]
        rows += [file(repo, "lib.py", code), file(repo, "data.json", "{}"), file(repo, "lib.py", "a second lib.py")]
    rows += [file(None, "alone.py", "print('a file of no repository')\n"), {"broken": 1}]
    write(tmp_path / "files.jsonl", rows)
    run([CodeShape(), CodeFormat()], tmp_path / "files.jsonl", tmp_path / "clean", quiet=True)
    report = run(
        [NearDedup(threshold=0.8)], tmp_path / "clean", tmp_path / "out", read=repository.read_repositories, quiet=True
    )
    assert (report.documents_in, report.documents_out) == (4, 3)  # the fork is a near duplicate of the original
    (written,) = (tmp_path / "out").glob("*.parquet")
    table = pq.read_table(written).combine_chunks().to_batches()[0]
    metas = [dict(meta) for meta in table["meta"].to_pylist()]
    assert [(meta.get("repo"), meta.get("files")) for meta in metas] == [
        (None, None),
        ("original", "2"),
        ("other", "2"),
    ]
    joined = texts(table).to_pylist()
    assert (
        joined[1]
        == f"# lib.py\n{library.rstrip()}\n\n# main.py\nimport lib\nprint(lib.function_number_1(2), 'original')\n"
    )


def test_broken_lines_are_passed_on_and_huge_repositories_are_errors(tmp_path: Path, monkeypatch):
    path = write(tmp_path / "files.jsonl", [file("r", "a.py", "x = 1\n"), file("big", "b.py", "y = 2\n" * 99)])
    path.write_text(path.read_text() + "\nnot json\n")
    monkeypatch.setattr(repository, "MAX_REPOSITORY", 100)
    batches = list(repository.read_repositories(path))
    assert [text for batch in batches for text in texts(kept(batch)).to_pylist()] == ["# a.py\nx = 1\n"]
    dropped = [r for batch in batches if "_drop" in batch.schema.names for r in batch["_drop"].to_pylist()]
    assert len(dropped) == 2
    assert all(reason.startswith("error:") for reason in dropped)
    assert "repository of 594 bytes" in dropped[1]
    report = run([CodeShape()], path, tmp_path / "out", read=repository.read_repositories, quiet=True)
    assert report.documents_out == 1
    assert sum(report.steps[0].errors.values()) == 2
