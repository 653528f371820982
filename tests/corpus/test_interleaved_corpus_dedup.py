"""Duplicates across documents with images: equal to counting by hand, however the corpus is cut; a site's lines."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery import corpus
from bloomery.core.errors import ConfigError
from bloomery.corpus.documents import with_column
from bloomery.corpus.interleaved import Part, aligned, from_aligned, from_parts, parts_of
from bloomery.corpus.interleaved.corpus_dedup import (
    CutFrequentLines,
    ImageAddressDedup,
    ImageSetDedup,
    LineDedup,
    PhraseDedup,
    UrlDedup,
    frequent,
    image_address_dedup,
    line_dedup,
    phrase_dedup,
)
from bloomery.corpus.interleaved.document_rules import DocumentRules, ImageAddressBan, ImageCount
from bloomery.corpus.interleaved.final_processing import FinalProcessing
from bloomery.corpus.interleaved.paragraph_rules import ParagraphRules
from bloomery.corpus.interleaved.parts import END_OF_DOCUMENT
from bloomery.corpus.interleaved.text_rules import TextRules
from bloomery.corpus.pii import ReplacePII
from bloomery.corpus.steps import DROP, Barrier, Step, kept, take_removed


def decided(barrier: Barrier, batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """The batches with the barrier's decisions about all of them."""
    answers = barrier.decide(pa.concat_tables([barrier.sketch(batch) for batch in batches]))
    first, found = 0, []
    for batch in batches:
        mine = answers.slice(first, batch.num_rows)
        for name in mine.schema.names:
            batch = with_column(batch, name, pa.concat_arrays(mine[name].chunks))
        first += batch.num_rows
        found.append(batch)
    return found


def applied(steps: list[Step | Barrier], batches: list[pa.RecordBatch]) -> list[list[Part]]:
    """The parts of all documents after the steps, of those that are dropped too."""
    for step in steps:
        batches = decided(step, batches) if isinstance(step, Barrier) else [step(batch) for batch in batches]
    return [parts for batch in batches for parts in parts_of(batch)]


def dropped(barrier: Barrier, batches: list[pa.RecordBatch]) -> list[bool]:
    return [reason is not None for b in decided(barrier, batches) for reason in b.column(DROP).to_pylist()]


def cut(batch: pa.RecordBatch, places: list[int]) -> list[pa.RecordBatch]:
    bounds = [0, *sorted(min(place, batch.num_rows) for place in places), batch.num_rows]
    return [batch.slice(a, b - a) for a, b in pairwise(bounds)]


# ---------------------------------------------------------------------------------------------------- of a site


def test_lines_of_a_site_are_the_references(golden_root: Path) -> None:
    """The rule of the reference's library: paragraphs that come twice in a domain, marks too, whatever the shard."""
    with gzip.open(golden_root / "mint1t" / "line_dedup.jsonl.gz", "rt", encoding="utf-8") as file:
        rows: list[dict[str, Any]] = [json.loads(line) for line in file]
    lists = ("texts", "images", "metadata")
    documents = [from_aligned(*(row["input"][name] for name in lists)) for row in rows]
    urls = [next(meta["document_url"] for meta in row["input"]["metadata"] if meta) for row in rows]
    for places in ([], [18], [1, 1, 30]):
        found = applied(line_dedup(max_count=1, spare_marks=False), cut(from_parts(documents, urls=urls), places))
        assert [aligned(parts) for parts in found] == [tuple(row["out"][name] for name in lists) for row in rows]


LINES = st.lists(st.sampled_from(["a", "b", "c", "", END_OF_DOCUMENT, f"{END_OF_DOCUMENT} x"]), max_size=5)
SITES = st.sampled_from(["http://A.example/1", "https://a.example/2", "http://b.example/", "http://[oops", "", None])
PAGES = st.lists(st.tuples(SITES, st.lists(LINES, max_size=3)), max_size=8)


@given(PAGES, st.integers(1, 3), st.booleans(), st.lists(st.integers(0, 8), max_size=3), st.booleans())
def test_lines_of_a_site_by_counting(
    pages: list[tuple[str | None, list[list[str]]]], most: int, spare: bool, places: list[int], image: bool
) -> None:
    """Equal to a loop with dictionaries, and independent of how the corpus is cut into batches."""

    def site(url: str) -> str:
        try:
            return urlsplit(url).netloc.lower()
        except ValueError:
            return ""

    texts = [["\n\n".join(lines) for lines in page] for _, page in pages]
    documents = [[*map(Part, some), *[Part(ref="i")] * image] for some in texts]
    seen = Counter((site(u), line) for (u, _), some in zip(pages, texts, strict=True) if u is not None
                   for text in some for line in text.split("\n\n"))  # fmt: skip
    expected = []
    for (url, _), some in zip(pages, texts, strict=True):
        left = []
        for text in some:
            lines = [
                line for line in text.split("\n\n")
                if url is None or (spare and END_OF_DOCUMENT in line) or seen[site(url), line] <= most
            ]  # fmt: skip
            left.append("\n\n".join(lines))
        expected.append([*filter(None, left), *[None] * image])
    batches = cut(from_parts(documents, urls=[url for url, _ in pages]), places)
    found = applied(line_dedup(max_count=most, spare_marks=spare), batches)
    assert [[part.text for part in parts] for parts in found] == expected


@given(st.lists(st.lists(st.integers(0, 30), max_size=6), max_size=8), st.integers(0, 3), st.integers(1, 50))
def test_counting_in_turns_is_counting(lists: list[list[int]], above: int, block: int) -> None:
    column = pa.chunked_array(
        [pa.array(lists[:3], pa.large_list(pa.uint64())), pa.array(lists[3:], pa.large_list(pa.uint64()))]
    )
    counts = Counter(value for some in lists for value in some if value)  # 0 is nothing
    expected = sorted(value for value, count in counts.items() if count > above)
    assert frequent(column, above, block).tolist() == expected
    assert frequent(column, above).tolist() == expected


def test_a_line_that_goes_has_a_reason_and_a_document_of_such_lines_too() -> None:
    pages = [[Part("menu\n\nwords")], [Part("menu")], [Part("menu\n\nmenu"), Part(ref="i")]]
    (batch,) = decided(LineDedup(), [from_parts(pages, urls=["http://a.example/"] * 3)])
    batch, why = take_removed(CutFrequentLines()(batch))
    assert why == {"line repeated on the site": 4}
    assert batch.column(DROP).to_pylist() == [None, "nothing left", None]
    assert [[p.text or p.ref for p in parts] for parts in parts_of(batch)] == [["words"], [], ["i"]]


def test_phrases_of_the_whole_corpus() -> None:
    """Short ones only, whatever their case and spaces, on every site; the mark between articles stays."""
    long = "This paragraph has thirteen words and is therefore none of the short ones"
    pages = [
        [Part(f"{phrase}\n\n{long}\n\n{END_OF_DOCUMENT}\n\n{i}")]
        for i, phrase in enumerate(["Skip  to", "SKIP TO"] * 6)
    ]
    found = applied(phrase_dedup(), [from_parts(pages[:5]), from_parts(pages[5:])])
    assert [parts[0].text for parts in found] == [f"{long}\n\n{END_OF_DOCUMENT}\n\n{i}" for i in range(12)]
    assert applied(phrase_dedup(), [from_parts(pages[:10])]) == pages[:10]
    (longer, *_) = applied(phrase_dedup(max_words=13), [from_parts(pages)])
    assert longer == [Part(f"{END_OF_DOCUMENT}\n\n0")]


# ---------------------------------------------------------------------------------------------------- of images


@given(
    st.lists(st.lists(st.sampled_from(["i", "j", "k", "l", None, "text"]), max_size=6), max_size=8),
    st.integers(1, 4), st.lists(st.integers(0, 8), max_size=3),
)  # fmt: skip
def test_frequent_addresses_by_counting(pages: list[list[str | None]], most: int, places: list[int]) -> None:
    documents = [[Part("words") if ref == "text" else Part(image=b"x", ref=ref) for ref in page] for page in pages]
    counts = Counter(part.ref for parts in documents for part in parts if part.ref)
    expected = [[part for part in parts if counts[part.ref] <= most] for parts in documents]
    assert applied(image_address_dedup(most), cut(from_parts(documents), places)) == expected


def test_ten_times_is_not_too_often() -> None:
    for times, left in ((10, 10), (11, 0)):
        found = applied(image_address_dedup(), [from_parts([[Part(ref="logo")]] * times)])
        assert sum(map(len, found)) == left


ARCHIVES = st.sampled_from(["CC-1", "CC-2", "CC-3", None])
COPIES = st.lists(st.tuples(st.sampled_from(["http://a/", "http://b/", None]), ARCHIVES), max_size=9)


@given(COPIES, st.lists(st.integers(0, 9), max_size=3), st.booleans())
def test_the_latest_copy_of_an_address_stays(
    pages: list[tuple[str | None, str | None]], places: list[int], published: bool
) -> None:
    metas = [{"warc_filename": archive} for _, archive in pages]
    if published:
        metas = [{"general_metadata": json.dumps(meta)} for meta in metas]  # type: ignore[dict-item]
    batch = from_parts([[Part(str(i))] for i in range(len(pages))], urls=[u for u, _ in pages], metas=metas)
    best: dict[str, int] = {}
    for number, (url, archive) in enumerate(pages):
        if url is not None and (url not in best or (archive or "") > (pages[best[url]][1] or "")):
            best[url] = number
    expected = [url is not None and best[url] != number for number, (url, _) in enumerate(pages)]
    assert dropped(UrlDedup(), cut(batch, places)) == expected


def test_the_same_set_of_images_in_any_order() -> None:
    pages = [["i", "j"], ["j", "i", "j"], ["i"], [], [], ["i j"], ["j", "i"]]
    documents = [[Part("x"), *(Part(ref=ref) for ref in page)] for page in pages]
    dates = ["2020", "2022", "2020", "2020", "2021", "2020", "2021"]
    batch = from_parts(documents, metas=[{"date": date} for date in dates])
    expected = [True, False, False, False, False, False, True]
    assert dropped(ImageSetDedup(), [batch]) == dropped(ImageSetDedup(), cut(batch, [2, 5])) == expected
    broken = from_parts([documents[0]] * 2, metas=[{"general_metadata": "{"}, {"general_metadata": "[]"}])
    assert dropped(ImageSetDedup(), [broken]) == [False, True]


def test_counts_below_one_are_refused() -> None:
    for make in (lambda: LineDedup(max_count=0), lambda: ImageAddressDedup(0), lambda: PhraseDedup(max_words=0)):
        with pytest.raises(ConfigError, match="1 or more"):
            make()


def test_nothing_at_all() -> None:
    empty = from_parts([])
    for barrier in (UrlDedup(), ImageSetDedup(), LineDedup(), PhraseDedup(), ImageAddressDedup()):
        assert len(barrier.decide(barrier.sketch(empty))) == 0
        assert barrier.plan(10**6, 10**9).ram_bytes > 0


# ---------------------------------------------------------------------------------------------------- personal data


def test_personal_data_makes_way() -> None:
    step = ReplacePII(emails=("E",), addresses=("A",))
    for before, after in (
        ("Mail jane.doe+x@mail.example.org, or (bob@b.co).", "Mail E, or (E)."),
        ("a@b", "a@b"),
        ("@user x@ .a..b@c.de.", "@user x@ .a..E."),
        ("8.8.8.8 1.2.3 10.0.0.1, 256.1.1.1 1.2.3.4.5 v8.8.4.4.", "A 1.2.3 10.0.0.1, 256.1.1.1 1.2.3.4.5 vA."),
        ("Größe ü@x.de", "Größe ü@x.de"),
    ):
        assert step.replaced(before) == after
    (found,) = parts_of(step(from_parts([[Part("x a@b.co"), Part(ref="http://a@b.co"), Part("10")]])))
    assert found == [Part("x E"), Part(ref="http://a@b.co"), Part("10")]
    assert ReplacePII(addresses=("A",), only_public=False).replaced("10.0.0.1") == "A"
    with pytest.raises(ConfigError, match="nothing to replace"):
        ReplacePII((), ())


@given(st.text(alphabet="ab.@1 -8", max_size=60))
def test_replacing_twice_is_replacing_once(text: str) -> None:
    step = ReplacePII()
    assert step.replaced(step.replaced(text)) == step.replaced(text)


def test_personal_data_takes_linear_time() -> None:
    for text in ("a" * 10**6 + "@", "@" * 10**5, "a@" * 10**5, "a-" * 10**5 + "@" + "a-" * 10**5, "1.1.1." * 10**5):
        ReplacePII().replaced(text)


# ---------------------------------------------------------------------------------------------------- the engine


STEPS: list[Step | Barrier] = [
    *image_address_dedup(5), UrlDedup(), *line_dedup(), ParagraphRules(TextRules(min_stop_words=0.1)),
    ImageAddressBan(), ImageCount(), DocumentRules(TextRules(min_words=3, min_stop_words=0.1)), ReplacePII(),
    ImageSetDedup(), FinalProcessing(),
]  # fmt: skip


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    random = np.random.default_rng(0)
    lines = [f"This is the line {i}, and it is one of many that we have here." for i in range(40)]
    for name in range(4):
        documents, urls, metas = [], [], []
        for row in range(25):
            text = "\n\n".join(["Home", *random.choice(lines, 3), "Share", f"a{row}@mail.org is all of it, {name}."])
            names = ["logo.png" if row == 3 else f"{random.integers(60)}.png", "spacer.gif"]
            documents.append(
                [Part(text), *(Part(image=b"\x89", ref=f"http://i.example/{n}") for n in names), Part("x")]
            )
            urls.append(f"http://{random.integers(3)}.example/{random.integers(60)}")
            metas.append({"warc_filename": f"CC-{name}"})
        pq.write_table(
            pa.Table.from_batches([from_parts(documents, urls=urls, metas=metas)]), folder / f"{name}.parquet"
        )
    return folder


def run_all(inputs: Path, folder: Path, engine: str) -> tuple[dict[str, bytes], dict[str, Any]]:
    report = corpus.run(STEPS, inputs, folder, engine=engine, workers=2, quiet=True)
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.parquet")}, report.to_dict(
        timings=False
    )


def test_the_same_bytes_on_processes_and_every_drop_with_a_reason(inputs: Path, tmp_path: Path) -> None:
    files, report = run_all(inputs, tmp_path / "inline", "inline")
    assert run_all(inputs, tmp_path / "processes", "processes") == (files, report)
    by_name = {step["name"]: step for step in report["steps"]}
    for name in ("UrlDedup", "ImageAddressBan", "ImageSetDedup"):
        assert sum(by_name[name]["dropped"].values()) > 0, name
    assert by_name["CutFrequentImages"]["removed"] == {"frequent image address": 100}
    assert by_name["CutFrequentLines"]["removed"]["line repeated on the site"] > 100
    assert by_name["LineDedup"]["notes"]["places"] == sum(by_name["CutFrequentLines"]["removed"].values())
    assert 0 < report["documents_out"] < 100
    for path in (tmp_path / "inline").glob("*.parquet"):
        for batch in corpus.read_documents(path):
            assert batch.schema.names == ["id", "url", "parts", "meta"]
            for parts in parts_of(kept(batch)):
                assert [part.is_image for part in parts] == [False, True]
                assert parts[1].image == b"\x89"
                assert "@mail" not in (parts[0].text or "")


@pytest.mark.slow
def test_the_same_bytes_on_ray(inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    assert run_all(inputs, tmp_path / "ray", "ray") == run_all(inputs, tmp_path / "inline", "inline")
