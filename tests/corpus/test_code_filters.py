"""The code filters against a plain-Python reading of their rules, each rule at its bound, and hostile input."""

from __future__ import annotations

import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError
from bloomery.corpus import Report, run
from bloomery.corpus.code_filters import CodeFormat, CodeShape, measure_shape, paths, suffixes, visible_text
from bloomery.corpus.documents import from_texts
from bloomery.corpus.steps import DROP

PIECES = ["a", "Z", "é", "日本", "1", " ", "\t", "\n", "\n\n", "\r\n", "\r", "_", "\U0001f600", "x" * 50, "\u2028"]
files = st.lists(
    st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=40).map("".join)), max_size=7
)


def reasons(step, texts: list[str], names: list[str] | None = None) -> list[str | None]:
    batch = step(from_texts(texts, metas=None if names is None else [{"path": name} for name in names]))
    return batch[DROP].to_pylist() if DROP in batch.schema.names else [None] * len(texts)


# ------------------------------------------------------------------------------------------------- shape of a file


def naive_shape(text: str) -> dict[str, float]:
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    sizes = [len(line.replace("\r", "")) for line in lines]
    return {
        "mean_line": sum(sizes) / len(sizes) if sizes else 0.0,
        "longest_line": max(sizes, default=0),
        "alphabetic": sum(map(str.isalpha, text)) / len(text) if text else 0.0,
    }


@given(files)
@example(["", "\n", "", "a\n", "b", "", "\n\n", "c"])
def test_the_measures_are_those_of_the_definition(texts):
    measured, naive = measure_shape(pa.array(texts, pa.string())), [naive_shape(text) for text in texts]
    assert set(measured) == {"mean_line", "longest_line", "alphabetic"}
    for name, values in measured.items():
        np.testing.assert_allclose(values, [row[name] for row in naive], rtol=1e-12, err_msg=name)


def test_blocks_do_not_show():
    texts = ["word " * 100_000, "é\n" * 200_000, "", "x = 1\n" * 100_000]  # several blocks of a megabyte
    whole = measure_shape(pa.array(texts, pa.string()))
    for row, text in enumerate(texts):
        alone = measure_shape(pa.array([text], pa.string()))
        for name, values in whole.items():
            assert values[row] == alone[name][0] == naive_shape(text)[name]


def test_the_bounds_of_the_shape_rules():
    mean_100, mean_101 = "a" * 100 + "\n" + "b" * 100, "a" * 101 + "\n" + "b" * 101
    longest_1000 = "a" * 1000 + "\n" * 20
    quarter, less = "ab 12345", "ab 123456"
    assert reasons(CodeShape(), [mean_100, mean_101, longest_1000, "a" * 1001 + "\n" * 20, quarter, less, ""]) == [
        None,
        "lines too long on average",
        None,
        "a line too long",
        None,
        "too few letters",
        "too few letters",
    ]
    assert reasons(CodeShape(max_mean_line=5), ["a" * 6]) == ["lines too long on average"]


def test_real_code_stays_and_minified_or_encoded_data_goes():
    code = Path(__file__).read_text(encoding="utf-8")
    minified = "function(a){return a.b(c,d)};" * 200
    hexadecimal = "\n".join(["0x12, 0x34, 0x56, 0x78, 0x90, 0x11, 0x22, 0x33"] * 50)
    assert reasons(CodeShape(), [code, minified, hexadecimal]) == [None, "lines too long on average", "too few letters"]


# ----------------------------------------------------------------------------------------------------------- formats


def test_xml_goes_and_xslt_stays():
    head = '<?xml version="1.0"?>\n<root>text</root>'
    texts = [head, head, head, " " * 86 + head, " " * 87 + head, "<root/>"]
    names = ["a.xml", "a.xslt", "lib/A.XSL", "late.py", "later.py", "b.xml"]
    assert reasons(CodeFormat(), texts, names) == ["XML", None, None, "XML", None, None]


def test_data_files_by_their_length():
    lengths = [49, 50, 5000, 5001, 10]
    names = ["a.json", "b.yaml", "c.YML", "d.json", "e.py"]
    assert reasons(CodeFormat(), ["é" * n for n in lengths], names) == [
        "data file too short",
        None,
        None,
        "data file too long",
        None,
    ]


def page(text: str, markup: int) -> str:
    frame = "<html><body><p>{}</p></body></html>"
    return frame.format(text + "<!--" + "-" * (markup - len(frame) - 5) + "-->")


def test_pages_need_visible_text_in_share_and_length():
    enough = page("word " * 20, 400)  # 99 visible characters of 100 asked for
    visible = "word " * 19 + "words"
    assert len(visible_text(page(visible, 400))) == 100
    share_20 = page(visible, 400)
    assert len(share_20) == 500
    texts, names = [enough, share_20, share_20 + "\n", share_20 + "\n"], ["a.html", "b.HTM", "c.xhtml", "d.py"]
    assert reasons(CodeFormat(), texts, names) == [
        "HTML with little to read",
        None,
        "HTML with little to read",
        None,
    ]  # fmt: skip
    japanese = page("日本語" * 40, 1000)  # the share is of bytes: 360 of 1,360
    assert reasons(CodeFormat(), [japanese], ["j.html"]) == [None]


def test_the_file_type_comes_from_path_or_address():
    batch = from_texts(
        ["a", "b", "c", "d", "e"],
        urls=["https://x.org/a.JSON?raw=1.txt#b.c", None, "https://[bad/y.html", "https://x.org/dir.d/name", "z.py"],
        metas=[None, {"path": "src/.hidden"}, {}, None, {"path": "w.yml"}],
    )
    assert list(suffixes(batch)) == ["json", "hidden", "html", "", "yml"]
    assert list(paths(batch))[1] == "src/.hidden"


# ------------------------------------------------------------------------------------------------------ visible text


class Reader(HTMLParser):
    """The standard library's idea of the text of a page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text, self.hidden = "", 0

    def handle_starttag(self, tag, attrs):
        self.hidden += tag in ("script", "style", "title")

    def handle_endtag(self, tag):
        self.hidden -= tag in ("script", "style", "title")

    def handle_data(self, data):
        self.text += "" if self.hidden else data


inline = st.sampled_from(
    ["one ", "two", "&amp;", "&lt;b&gt; ", "é", "<br>", "<br/>", '<img alt="a > b" src=x>', "\n  "]
)
elements = st.recursive(
    inline,
    lambda inner: st.tuples(
        st.sampled_from(
            [("<p class='x'>", "</p>"), ("<DIV>", "</DIV >"), ("<!-- a <b> -->", ""), ("<a href=y>", "</a>")]
        ),
        st.lists(inner, max_size=4).map("".join),
    ).map(lambda made: made[0][0] + made[1] + made[0][1]),
    max_leaves=12,
)
scripts = st.sampled_from(["", "<script>if (a < b) { x = '<p>no</p>' }</script>", "<STYLE media='a'>p > b {}</Style>"])


@given(st.lists(st.one_of(elements, scripts), max_size=6).map("".join))
def test_visible_text_is_that_of_an_html_parser(page):
    reader = Reader()
    reader.feed("<title>never</title>" + page)
    reader.close()
    assert visible_text("<title>never</title>" + page) == " ".join(reader.text.split())


@pytest.mark.parametrize(
    ("page", "seen"),
    [("a < b and <3", "a < b and <3"), ("<p title=\"it's > 1\">x</p>", "x"), ("<p it's>x</p>", "x"), ("a<!-- b", "a"),
     ("a<script>b", "a"), ("a<script>b</scrip>c</script >d", "ad"), ("<a href='x>y", ""), ("<!doctype html>a", "a"),
     ("&#99999999999999999999;", "&#99999999999999999999;"), ("&nosuch; &eacute;", "&nosuch; é"), ("", "")],
)  # fmt: skip
def test_odd_pages(page, seen):
    assert visible_text(page) == seen


@given(st.one_of(st.text(max_size=80), st.text(alphabet="<>!-/=\"' &;#ascript", max_size=80)))
def test_any_text_is_read_to_its_end(page):
    visible = visible_text(page)
    assert len(visible) <= max(len(page), 1)
    if "<" not in page and "&" not in page:
        assert visible == " ".join(page.split())


@pytest.mark.parametrize(
    "unit",
    ["<", "<!--", "<!", '<a ="', "<a ='", "<script>", "</", "&", "&#", "<a = ", "<a", "\r", "\n", "é", "<!-->", "&#9"],
)  # fmt: skip
def test_time_grows_with_the_length_and_no_faster(unit):
    def seconds(size: int) -> float:
        texts, began = [unit * (size // len(unit))], time.process_time()
        CodeFormat()(CodeShape()(from_texts(texts, metas=[{"path": "a.html"}])))
        return time.process_time() - began

    seconds(1000)
    short = min(seconds(50_000) for _ in range(3))
    assert seconds(800_000) < 80 * max(short, 2e-3)  # 16 times the text; quadratic time would be 256 times as long


# ------------------------------------------------------------------------------------------------------------- as steps


def test_in_a_run_the_report_says_why(tmp_path: Path):
    rows = [
        ("a.py", "import os\n\nprint(os.getcwd())\n"),
        ("b.json", "{}"),
        ("c.js", "x;" * 900),
        ("d.xml", '<?xml version="1.0"?>'),
    ]
    table = pa.table({"text": [text for _, text in rows], "url": [f"https://x.org/{name}" for name, _ in rows]})
    pq.write_table(table, tmp_path / "files.parquet")
    report = run([CodeShape(), CodeFormat()], tmp_path / "files.parquet", tmp_path / "out", quiet=True)
    assert isinstance(report, Report)
    assert (report.documents_in, report.documents_out) == (4, 1)
    shape, form = report.steps[1:]
    assert shape.dropped == {"too few letters": 1, "lines too long on average": 1}
    assert form.dropped == {"XML": 1}


def test_empty_batches_and_documents_without_text():
    empty = CodeFormat()(CodeShape()(from_texts([])))
    assert empty.num_rows == 0
    assert reasons(CodeFormat(), ["", ""], ["a.html", "b.json"]) == ["HTML with little to read", "data file too short"]


@pytest.mark.parametrize(
    "wrong",
    [lambda: CodeShape(min_alphabetic=2), lambda: CodeShape(max_line=0), lambda: CodeShape(max_mean_line=float("nan")),
     lambda: CodeFormat(min_data=9, max_data=8), lambda: CodeFormat(min_visible_share=-1)],
)  # fmt: skip
def test_nonsense_is_refused(wrong):
    with pytest.raises(ConfigError):
        wrong()
