"""OBELICS' Parquet, MINT-1T's archives, text for training and the page for readers: there, back, and bad files."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus.documents import texts
from bloomery.corpus.interleaved import Part, from_parts, parts_of
from bloomery.corpus.interleaved.image_tokens import ImageTokens
from bloomery.corpus.interleaved.obelics_parquet import SCHEMA, read_obelics, write_obelics
from bloomery.corpus.interleaved.reader_page import reader_page
from bloomery.corpus.interleaved.webdataset import read_webdataset, write_webdataset
from bloomery.corpus.steps import DROP

image_module = pytest.importorskip("PIL.Image", reason="needs the extra `interleave`")

WORDS = st.text(max_size=12)
OBJECTS = st.dictionaries(WORDS, st.one_of(st.none(), WORDS, st.integers(), st.floats(allow_nan=False), st.booleans()))
PLACES = st.lists(st.one_of(WORDS, st.tuples(st.text(min_size=1, max_size=12), OBJECTS)), max_size=6)


def picture(width: int, height: int = 20, form: str = "PNG", mode: str = "RGB") -> bytes:
    shape = (height, width) if mode == "L" else (height, width, len(mode))
    pixels = np.random.default_rng(width).integers(0, 255, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    image_module.fromarray(pixels, mode).save(buffer, form)
    return buffer.getvalue()


def pixels(data: bytes | None) -> np.ndarray:
    return np.asarray(image_module.open(io.BytesIO(data or b"")))


# -------------------------------------------------------------------------------------------------- OBELICS' Parquet


@given(st.lists(st.tuples(PLACES, OBJECTS), min_size=1, max_size=4))
def test_json_comes_out_as_it_went_in(tmp_path_factory, documents) -> None:
    folder = tmp_path_factory.mktemp("obelics")
    rows = [
        {
            "texts": [place if isinstance(place, str) else None for place in places],
            "images": [None if isinstance(place, str) else place[0] for place in places],
            "metadata": json.dumps([None if isinstance(place, str) else place[1] for place in places]),
            "general_metadata": json.dumps({"url": "http://a.example/ü", **general}),
        }
        for places, general in documents
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "theirs.parquet")
    batches = list(read_obelics(folder / "theirs.parquet"))
    assert all(batch.column(DROP).null_count == batch.num_rows for batch in batches)
    assert write_obelics(folder / "ours.parquet", batches) == len(rows)
    assert pq.read_table(folder / "ours.parquet").to_pylist() == rows
    write_obelics(folder / "again.parquet", batches)
    assert (folder / "again.parquet").read_bytes() == (folder / "ours.parquet").read_bytes()


def test_documents_of_ours_in_small_row_groups(tmp_path) -> None:
    parts = [Part("a"), Part(ref="http://x.example/1.png", meta={"alt": "one"})]
    batch = from_parts([parts] * 450, urls=["http://x.example"] * 450, metas=[{"lang": "en"}] * 450)
    assert write_obelics(tmp_path / "a.parquet", [batch]) == 450
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert file.metadata.num_row_groups == 3
    assert all(not pa.types.is_nested(column.type) or column.type.value_type == pa.string() for column in SCHEMA)
    (row, *_) = file.read().to_pylist()
    assert json.loads(row["general_metadata"]) == {"url": "http://x.example", "lang": "en"}
    assert json.loads(row["metadata"]) == [None, {"alt": "one"}]


def test_rows_that_do_not_fit_are_errors(tmp_path) -> None:
    good = {"texts": ["a"], "images": [None], "metadata": "[null]", "general_metadata": "{}"}
    bad = [
        good | {"texts": ["a", "b"]}, good | {"images": ["x"]}, good | {"metadata": "{"}, good | {"metadata": "{}"},
        good | {"general_metadata": "3"},
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist([good, *bad], schema=SCHEMA), tmp_path / "a.parquet")
    (batch,) = read_obelics(tmp_path / "a.parquet")
    reasons = batch.column(DROP).to_pylist()
    assert reasons[0] is None
    assert all(reason.startswith("error: ") for reason in reasons[1:])
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="no column texts and images"):
        list(read_obelics(tmp_path / "b.parquet"))
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="cannot be read"):
        list(read_obelics(tmp_path / "c.parquet"))


# ------------------------------------------------------------------------------------------------ MINT-1T's archives


def test_archives_come_back(tmp_path) -> None:
    parts = [
        Part("before"), Part(None, picture(30), "page_0_image_1", {"page": 0, "xref": 7}),
        Part(None, picture(31, form="JPEG"), "page_1_image_2", {"page": 1}), Part("after"),
        Part(ref="not fetched"), Part(None, b"broken", "broken"), Part(None, picture(9, mode="L"), "grey"),
        Part(None, picture(12, mode="RGBA"), "clear"),
    ]  # fmt: skip
    batch = from_parts(
        [parts, [Part("only text")]], ["ab" * 16, "other"], ["http://a.example", None], [{"k": "v"}, None]
    )
    assert write_webdataset(tmp_path / "a.tar", [batch]) == {"documents": 2, "images": 4, "left_out": 2}
    write_webdataset(tmp_path / "b.tar", [batch])
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as archive:
        names = archive.getnames()
        record = json.load(archive.extractfile(names[0]))
    assert names[:2] == ["ab" * 16 + ".json", "ab" * 16 + ".tiff"]
    assert len(names) == 3
    assert record["images"] == [None, "page_0_image_1", "page_1_image_2", None, "grey", "clear"]
    assert sorted(record["image_metadata"][0]) == ["height", "page", "sha256", "width", "xref"]
    (back,) = read_webdataset(tmp_path / "a.tar")
    assert back.column("id").to_pylist() == ["ab" * 16, "other"]
    assert back.column("url").to_pylist() == ["http://a.example", None]
    first, second = parts_of(back)
    kept = [part for part in parts if part.text is not None or part.ref not in ("not fetched", "broken")]
    assert [part.text or part.ref for part in first] == [part.text or part.ref for part in kept]
    for one, other in zip(kept, first, strict=True):
        assert not one.is_image or np.array_equal(pixels(one.image), pixels(other.image))
    assert [part.text for part in second] == ["only text"]


def archive(path, **files: bytes) -> None:
    with tarfile.open(path, "w") as out:
        for name, data in files.items():
            member = tarfile.TarInfo(name.replace("_", "."))
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a_tiff": b"x"}, "without .json"),
        ({"a_json": b"{"}, "not JSON"),
        ({"a_json": b"[]"}, "not lists of one length"),
        ({"a_json": b'{"texts": ["a"], "images": []}'}, "not lists of one length"),
        ({"a_json": b'{"texts": [null], "images": ["x"]}'}, "1 images, 0 frames, 0 image_metadata"),
        ({"a_json": b'{"texts": [null], "images": [null]}'}, "not exactly one"),
        ({"a_json": b'{"texts": [null], "images": ["x"]}', "a_tiff": b"II*\x00 broken"}, "cannot be read"),
    ],
)
def test_bad_samples_are_named(tmp_path, files, reason) -> None:
    archive(tmp_path / "a.tar", **files)
    with pytest.raises(DataError, match=reason):
        list(read_webdataset(tmp_path / "a.tar"))


def test_a_huge_image_is_not_decoded(tmp_path) -> None:
    buffer = io.BytesIO()
    image_module.new("1", (9_000, 9_000)).save(buffer, "PNG")
    batch = from_parts([[Part("a"), Part(None, buffer.getvalue(), "huge")]])
    assert write_webdataset(tmp_path / "a.tar", [batch])["left_out"] == 1
    assert "cannot be shown" in reader_page([batch])
    (tmp_path / "b.tar").write_bytes(b"no tar" * 100)
    with pytest.raises(DataError, match="cannot be read"):
        list(read_webdataset(tmp_path / "b.tar"))


# ------------------------------------------------------------------------------------------------ training, reading


def test_tokens_stand_where_images_were() -> None:
    batch = from_parts([[Part("a"), Part(ref="x"), Part("say <image> aloud")], [], [Part(ref="y")]])
    assert texts(ImageTokens()(batch)).to_pylist() == ["a\n\n<image>\n\nsay < image> aloud", "", "<image>"]
    assert ImageTokens()(batch.slice(0, 0)).num_rows == 0
    with pytest.raises(ConfigError, match="token"):
        ImageTokens("")


def test_the_page_shows_everything_in_order_and_runs_nothing() -> None:
    hostile = "<script>alert(1)</script>\"'&"
    parts = [
        Part("First paragraph."), Part(None, picture(800, 600), "http://x.example/a.png", {"alt": hostile}),
        Part(hostile), Part(None, None, "javascript:alert(1)", {"missing": hostile}),
        Part(None, b"<svg onload=x>", "b"),
    ]  # fmt: skip
    page = reader_page([from_parts([parts] * 3, [hostile, "2", "3"], ['"><script>'] * 3)], limit=2)
    assert "<script" not in page
    assert "<svg" not in page
    assert page.count("<article") == 2
    assert page.count('<img src="data:image/jpeg;base64,') == 2
    places = [page.index(piece) for piece in ("<p>First paragraph.", "<img src", "<p>&lt;script&gt;", 'class="absent"')]
    assert places == sorted(places)
    assert 'src="http' not in page
    assert len(page) < 200_000  # the images are drawn small


def test_long_documents_are_cut() -> None:
    page = reader_page([from_parts([[Part("word " * 10_000), Part("end")], [Part(ref="x")] * 100])])
    assert "the text goes on" in page or "and 1 more parts" in page
    assert page.count("<figure>") == 40
    assert "and 60 more parts" in page
    assert reader_page([]).count("<article") == 0
