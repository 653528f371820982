"""PDF to parts: the order of every generated layout, real files, and files that were made to do harm."""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.core.errors import DataError
from bloomery.corpus.interleaved import Part
from bloomery.metrics.order import kendall_tau
from bloomery.recipes._mint1t_real import top_down
from bloomery.web.interleave.pdf import Limits, PdfReader
from bloomery.web.interleave.pdf_layout import Item, Paragraph, paragraphs, reading_order, without_margins
from bloomery.worlds.pdf_pages import HEADER, HEIGHT, LAYOUTS, WIDTH, KnownPdf, Sheet, assemble, known_pdfs, write_pdf

pytest.importorskip("pypdfium2", reason="needs the extra `interleave`")
image_module = pytest.importorskip("PIL.Image", reason="needs the extra `interleave`")

PICTURES = [np.random.default_rng(i).integers(0, 255, (160, 200 + i, 3), dtype=np.uint8) for i in range(4)]


@pytest.fixture(scope="module")
def reader() -> Iterator[PdfReader]:
    with PdfReader() as open_reader:
        yield open_reader


def found(parts: list[Part]) -> list[str | int]:
    """Texts, and the numbers of PICTURES, which differ in width."""
    return [int(part.meta["width"]) - 200 if part.text is None else part.text for part in parts]


# ------------------------------------------------------------------------------------------------------------ order


@pytest.mark.parametrize("known", [k for seed in (0, 1) for k in known_pdfs(PICTURES, seed)], ids=lambda k: k.name)
def test_the_order_of_every_layout(known: KnownPdf, reader: PdfReader) -> None:
    parts = reader.read(known.data)
    assert kendall_tau(known.ranks(found(parts))) == 1.0
    assert sorted(n for n in found(parts) if isinstance(n, int)) == sorted(n for n in known.order if isinstance(n, int))
    assert not any(HEADER in (part.text or "") or "page 2" in (part.text or "") for part in parts)
    for part in parts:
        if part.image is not None:
            pixels = np.asarray(image_module.open(io.BytesIO(part.image)))
            assert np.array_equal(pixels, PICTURES[int(part.meta["width"]) - 200])


def test_from_the_top_down_two_columns_are_mixed(reader: PdfReader) -> None:
    taus = {k.name: kendall_tau(k.ranks(found(reader.read(k.data, order=top_down)))) for k in known_pdfs(PICTURES)}
    assert taus["one column"] == 1.0
    assert taus["two columns"] == pytest.approx(0.75, abs=0.02)  # two pages: 0.5 on each, 1 between them
    assert taus["three columns"] == pytest.approx(0.33, abs=0.02)
    assert set(taus) == set(LAYOUTS)


def test_captions_follow_their_pictures(reader: PdfReader) -> None:
    (known,) = (k for k in known_pdfs(PICTURES) if k.name == "figures")
    parts = found(reader.read(known.data))
    for place, part in enumerate(parts):
        if isinstance(part, int):
            assert str(parts[place + 1]).startswith(f"Figure {part + 1}: ")


@settings(max_examples=25)
@given(
    st.lists(
        st.builds(
            lambda x, y, w, h, picture: Item(x, y, x + w, y + h, "" if picture else "word", h, picture - 1),
            st.integers(0, 500), st.integers(0, 700), st.integers(1, 300), st.integers(1, 90), st.integers(0, 3),
        ),
        max_size=30,
    )
)  # fmt: skip
def test_whatever_lies_on_a_page_is_read_once(items: list[Item]) -> None:
    items = [Item(i.x0, i.y0, i.x1, i.y1, i.text and f"w{n}", i.size, i.picture) for n, i in enumerate(items)]
    runs = reading_order(items, WIDTH, HEIGHT)
    words = sorted(word for run in runs for line in run for word in line.text.split())
    assert words == sorted(item.text for item in items if item.picture < 0)
    pictures = sorted(line.picture for run in runs for line in run if line.picture >= 0)
    small = [i for i in items if i.picture >= 0]
    assert pictures == sorted(i.picture for i in small)  # none covers nearly a whole page


def test_a_scan_under_its_text_is_left_out() -> None:
    scan, word = Item(0, 0, WIDTH, HEIGHT, picture=0), Item(50, 50, 90, 60, "word", 10)
    assert [[line.text for line in run] for run in reading_order([scan, word], WIDTH, HEIGHT)] == [["word"]]
    background = Item(40, 40, 400, 400, picture=0)
    (run,) = reading_order([background, word, Item(50, 20, 90, 30, "above", 10)], WIDTH, HEIGHT)
    assert [line.text or line.picture for line in run] == ["above", 0, "word"]


def test_lines_to_paragraphs() -> None:
    def line(text: str, y: float, x: float = 0.0, x1: float = 100.0, size: float = 10.0) -> Item:
        return Item(x, y, x1, y + size, text, size)

    runs = [
        [line("A heading", 0, size=14), line("First with divi-", 20), line("sion of a word.", 32),
         line("Indented one", 44, x=12), line("goes on", 56)],
        [line("in the next column. End.", 0, x1=60), line("After a short line.", 12), line("Far below", 60)],
    ]  # fmt: skip
    assert paragraphs(runs) == [
        Paragraph("A heading"), Paragraph("First with division of a word."),
        Paragraph("Indented one goes on in the next column. End."), Paragraph("After a short line."),
        Paragraph("Far below"),
    ]  # fmt: skip


def test_only_what_repeats_at_the_edges_goes() -> None:
    def page(number: int) -> list[Item]:
        return [
            Item(0, y, 50, y + 9, text, 9)
            for y, text in ((10, f"Header {number}"), (400, "Same"), (780, "Own" * number))
        ]

    left = without_margins([page(1), page(2), page(3)], [HEIGHT] * 3)
    assert [[item.text for item in items] for items in left] == [["Same", "Own" * n] for n in (1, 2, 3)]
    assert [i.text for i in without_margins([page(1)], [HEIGHT])[0]] == ["Header 1", "Same", "Own"]


# --------------------------------------------------------------------------------------------------------- real files


def test_real_files(data_root: Path, reader: PdfReader) -> None:
    files = sorted((data_root / "pdf").glob("*.pdf"))
    assert files
    scans = {"grayscale-image.pdf", "pdfminer_issue-1057-tiff-predictor.pdf"}
    for file in files:
        if file.name in scans:
            with pytest.raises(DataError, match="has no text"):
                reader.read(file.read_bytes(), file.name)
        else:
            assert reader.read(file.read_bytes(), file.name), file.name


def test_real_columns_arabic_turned_text_and_images(data_root: Path, reader: PdfReader) -> None:
    def read(name: str) -> list[Part]:
        return reader.read((data_root / "pdf" / name).read_bytes(), name)

    texts = [part.text or "" for part in read("multicolumn.pdf")]
    assert texts[:3] == ["Two-Column Document with Lorem Ipsum", "Your Name January 3, 2024", "Abstract"]
    assert any("consectetuer adipiscing elit" in text for text in texts)  # divided at the end of a line
    paper = [part.text or "" for part in read("pdfminer_issue-1061-colour-space-stack.pdf")]
    starts = [next(i for i, text in enumerate(paper) if text.startswith(head)) for head in (
        "Individual Differential", "Abstract", "Index Terms", "I. Introduction", "II. Background",
    )]  # fmt: skip
    assert starts == sorted(starts)
    assert not any("IEEE TRANSACTIONS ON" in text for text in paper)
    assert "حبيبي"[0] in "".join(part.text or "" for part in read("habibi.pdf"))
    assert [part.text for part in read("pdfminer_issue-449-vertical.pdf")] == ["Test Vertical Layout"]
    (picture,) = (part for part in read("pdflatex-image.pdf") if part.is_image)
    assert (picture.ref, picture.meta["format"]) == ("page_0_image_0", "jpeg")
    assert image_module.open(io.BytesIO(picture.image or b"")).size == (300, 200)


# ---------------------------------------------------------------------------------------------------------- bad files


def one_page(content: bytes, filters: str = "/FlateDecode", extra: str = "", more: tuple[bytes, ...] = ()) -> bytes:
    stream = b"<< /Filter [%s] /Length %d >>\nstream\n%s\nendstream" % (filters.encode(), len(content), content)
    page = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 5 0 R /Resources << {extra} "
    return assemble([
        b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Count 1 /Kids [4 0 R] >>",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Courier >>", page.encode() + b"/Font << /F 3 0 R >> >> >>", stream,
        *more,
    ])  # fmt: skip


@pytest.mark.parametrize("matrix", ["0 1 -1 0", "0 -1 1 0", "-1 0 0 -1"])
def test_a_turned_page_reads_like_an_upright_one(matrix: str, reader: PdfReader) -> None:
    c, d = map(int, matrix.split()[2:])
    draw = "".join(
        f"BT /F 10 Tf {matrix} {300 - 12 * n * c} {400 - 12 * n * d} Tm (line number {word}) Tj ET\n"
        for n, word in enumerate(("one", "two", "three"))
    )
    parts = reader.read(one_page(zlib.compress(draw.encode())))
    assert [part.text for part in parts] == ["line number one line number two line number three"]


def test_a_page_with_a_rotation_entry(reader: PdfReader) -> None:
    sheet = Sheet()
    for n, word in enumerate(("one", "two")):
        sheet.line(60, 300 + 12 * n, f"line number {word}")
    parts = reader.read(write_pdf([sheet], extra="/Rotate 90"))
    assert [part.text for part in parts] == ["line number one line number two"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "damaged"),
        (b"%PDF-1.4 and then nothing", "damaged"),
        (b"\x00" * 1000, "damaged"),
        (assemble([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Count 0 /Kids [] >>"]), "no pages|damaged"),
        (assemble([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Count 9 /Kids [2 0 R] >>"]), "PDF"),
        (write_pdf([Sheet() for _ in range(51)]), "more than 50 pages"),
        (write_pdf([Sheet()]), "has no text"),
        (
            write_pdf([Sheet()]).replace(
                b"trailer\n<< ",
                b"trailer\n<< /ID [<00> <00>] /Encrypt << /Filter /Standard /V 1 /R 2 /P -4 "
                b"/O <" + b"41" * 32 + b"> /U <" + b"42" * 32 + b"> >> ",
            ),
            "encrypted",
        ),
    ],
    ids=["empty", "truncated", "zeros", "no pages", "loop", "long", "blank", "encrypted"],
)
def test_the_reason_is_named(data: bytes, reason: str, reader: PdfReader) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        reader.read(data, "here.pdf")
    assert "here.pdf" in str(caught.value)


def test_a_damaged_file_does_not_end_the_reader(reader: PdfReader) -> None:
    good = known_pdfs(PICTURES)[0]
    random = np.random.default_rng(0)
    for _ in range(20):
        broken = bytearray(good.data)
        for place in random.integers(0, len(broken), 40):
            broken[place] = random.integers(256)
        with contextlib.suppress(DataError):
            reader.read(bytes(broken))
    assert kendall_tau(good.ranks(found(reader.read(good.data)))) == 1.0


def test_bombs_are_bounded() -> None:
    bomb = zlib.compress(zlib.compress(b" " * (600 << 20), 9), 9)
    assert len(bomb) < 10_000
    huge = b"<< /Type /XObject /Subtype /Image /Width 60000 /Height 60000 /BitsPerComponent 8 /ColorSpace /DeviceRGB "
    huge += b"/Filter /FlateDecode /Length 8 >>\nstream\n" + zlib.compress(b"") + b"\nendstream"
    draw = zlib.compress(b"BT /F 10 Tf 1 0 0 1 50 700 Tm (some words) Tj ET q 300 0 0 300 9 9 cm /I Do Q")
    many = zlib.compress(b"0 0 m 9 9 l S\n" * 200_000)
    with PdfReader(Limits(seconds=20, memory=400 << 20)) as reader:
        with pytest.raises(DataError, match=r"too much memory|crashed|took more"):
            reader.read(one_page(bomb, "/FlateDecode /FlateDecode"))  # the native library gives up; a new child follows
        parts = reader.read(one_page(draw, extra="/XObject << /I 6 0 R >>", more=(huge,)))
        assert [(p.text, p.image) for p in parts] == [("some words", None), (None, None)]
        with pytest.raises(DataError, match="objects on a page"):
            reader.read(one_page(many))


def test_a_crash_and_a_hang_cost_one_file() -> None:
    good = known_pdfs(PICTURES)[0]
    with PdfReader(Limits(memory=1 << 20)) as reader, pytest.raises(DataError, match="needs too much memory"):
        reader.read(good.data)
    with PdfReader(Limits(seconds=0.001)) as reader, pytest.raises(DataError, match=r"more than 0\.001 s"):
        reader.read(good.data)
    with PdfReader() as reader:
        reader.read(good.data)
        reader._child.kill()
        reader._child.wait()
        assert reader.read(good.data)


def test_sizes_are_refused_before_the_child_sees_them() -> None:
    with PdfReader(Limits(bytes=10)) as reader:
        with pytest.raises(DataError, match="more than 0 MB"):
            reader.read(b"%PDF-1.4 and more")
        assert reader._child is None
