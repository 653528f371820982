"""Headers without decoding, loading with limits, shape and safety filters."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus.interleaved import Part, from_parts, parts_of
from bloomery.corpus.interleaved.flat_images import image_bytes, images_of, remove_images
from bloomery.corpus.interleaved.image_filters import ImageShape, SafeImages
from bloomery.corpus.interleaved.image_hash import HashImages
from bloomery.corpus.interleaved.image_header import image_header
from bloomery.corpus.interleaved.images import FolderImages, GivenImages, LoadImages, Missing
from bloomery.corpus.interleaved.pixels import decoded
from bloomery.corpus.steps import DROP, REMOVED


def encode(
    kind: str, size: tuple[int, int] = (200, 180), color: tuple[int, int, int] = (200, 30, 30), **options
) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind, **options)
    return buffer.getvalue()


def png_bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A valid PNG header of 3.6 gigapixels with a few bytes of data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9999))) + chunk(b"IEND", b"")
    )


def reasons(batch: pa.RecordBatch) -> list[list[str]]:
    return batch.column(REMOVED).to_pylist() if REMOVED in batch.schema.names else [[]] * batch.num_rows


def one(*parts: Part, **meta: str) -> pa.RecordBatch:
    return from_parts([list(parts)], urls=["https://a.example/page"], metas=[meta])


# ------------------------------------------------------------------------------------------------------------- headers


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 700), st.integers(1, 700),
    st.sampled_from([("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("GIF", {}), ("WEBP", {}),
                     ("WEBP", {"lossless": True}), ("WEBP", {"exif": b"Exif\0\0" + bytes(40)})]),
)  # fmt: skip
def test_headers_say_what_pillow_says(width, height, form):
    kind, options = form
    data = encode(kind, (width, height), **options)
    assert image_header(data) == (kind.lower(), width, height)
    for end in range(0, min(len(data), 40)):
        image_header(data[:end])  # whatever is missing, no exception


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]), st.integers(0, 60))
def test_no_bytes_make_the_reader_fail(noise, kind, at):
    data = encode(kind, (20, 20))
    found = image_header(data[:at] + noise + data[at:])
    assert found is None or (found.width > 0 and found.height > 0)
    decoded(data[:at] + noise + data[at:], (32, 32), "L")


def test_a_jpeg_with_large_metadata_before_its_size():
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    assert image_header(encode("JPEG", (33, 44), exif=exif.tobytes())) == ("jpeg", 33, 44)


# ------------------------------------------------------------------------------------------------------------- loading


def test_images_come_from_the_source_once_each_and_reasons_are_given(tmp_path):
    asked = []

    class Counting(GivenImages):
        def get(self, addresses):
            asked.extend(addresses)
            return super().get(addresses)

    good, bomb = encode("PNG"), png_bomb()
    given_ = {
        "http://a/1.png": good, "http://a/bomb.png": bomb, "http://a/x.gif": encode("GIF"), "http://a/t": b"<html>",
    }  # fmt: skip
    refs = [*given_, "http://a/none.png", "http://a/1.png"]
    batch = one(Part("before"), *(Part(ref=ref, meta={"alt": "x"}) for ref in refs), Part("after"))
    loaded = LoadImages(Counting(given_))(batch)
    (parts,) = parts_of(loaded)
    assert [part.text or part.ref for part in parts] == ["before", "http://a/1.png", "http://a/1.png", "after"]
    assert parts[1].image == good
    assert parts[1].meta == {
        "alt": "x", "width": 200, "height": 180, "format": "png", "sha256": hashlib.sha256(good).hexdigest(),
    }  # fmt: skip
    assert reasons(loaded) == [["too many pixels", "format gif", "not an image of a known kind", "not found"]]
    assert sorted(asked) == sorted(set(refs))


def test_a_bomb_is_never_decoded(monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded"))
    assert image_header(png_bomb()) == ("png", 60_000, 60_000)
    assert reasons(LoadImages(None)(one(Part(None, png_bomb())))) == [["too many pixels"]]
    assert decoded(png_bomb(), (32, 32), "L") is None


def test_bytes_of_a_document_are_bounded_and_images_in_it_are_checked_too():
    images = [encode("PNG", (200, 180), (n, n, n)) for n in range(4)]
    batch = one(
        *(Part(None, data, f"i{n}") for n, data in enumerate(images)), Part(ref="f.eps", meta={"missing": "eps"})
    )
    loaded = LoadImages(None, document_bytes=len(images[0]) + len(images[1]))(batch)
    assert [part.ref for part in next(parts_of(loaded))] == ["i0", "i1"]
    assert reasons(loaded) == [["too many bytes in the document"] * 2 + ["eps"]]


def test_a_folder_gives_what_lies_in_it_and_nothing_else(tmp_path):
    root = tmp_path / "mirror"
    (root / "a.example" / "pics").mkdir(parents=True)
    (root / "a.example" / "pics" / "a b.png").write_bytes(b"1")
    (root / "a.example" / "large.png").write_bytes(bytes(200))
    (tmp_path / "secret.png").write_bytes(b"2")
    (root / "a.example" / "link.png").symlink_to(tmp_path / "secret.png")
    source = FolderImages(root, max_bytes=100)
    found = source.get([
        "https://a.example/pics/a%20b.png", "https://a.example/../../secret.png", "https://a.example/%2e%2e/%2e%2e/secret.png",
        "https://a.example/link.png", (tmp_path / "secret.png").as_uri(), (root / "a.example/pics/a b.png").as_uri(),
        "https://a.example/none.png", "https://a.example/large.png", "https://a.example/\0.png", "file://etc/passwd",
    ])  # fmt: skip
    outside = Missing("outside of the folder")
    assert found[0] == found[5] == b"1"
    assert found[1:5] == [outside] * 4
    assert found[6:9] == [Missing("not found"), Missing("too many bytes"), Missing("cannot be read")]
    assert isinstance(found[9], Missing)


def test_steps_with_other_images_are_other_steps(tmp_path):
    some, others = GivenImages({"a": b"1"}), GivenImages({"a": b"2"})
    assert LoadImages(some).fingerprint() != LoadImages(others).fingerprint() != LoadImages(None).fingerprint()
    with pytest.raises(ConfigError, match="did you mean 'jpeg'"):
        LoadImages(None, formats=("jpeeg",))


# ------------------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("meta", "kind", "reason"),
    [
        ({"width": 150, "height": 150}, "text/html", None),
        ({"width": 149, "height": 400}, "text/html", "too small"),
        ({"width": 20_000, "height": 10_000}, "text/html", None),
        ({"width": 20_001, "height": 15_000}, "text/html", "too large"),
        ({"width": 300, "height": 600}, "text/html", None),
        ({"width": 300, "height": 601}, "text/html", "too long or too wide"),
        ({"width": 900, "height": 300}, "application/pdf", None),
        ({"width": 900, "height": 300}, "application/x-tex", None),
        ({"width": 901, "height": 300}, "application/pdf", "too long or too wide"),
        ({"width": 901, "height": 300}, "", "too long or too wide"),
        ({"width": 400, "height": 400, "rendered_width": 100}, "text/html", "too small"),
        ({"width": 400, "height": 400, "rendered_width": "50%", "rendered_height": "100%"}, "text/html", None),
        ({"width": 400, "height": 400, "rendered_width": "10%"}, "text/html", "too small"),
        ({"rendered_width": "10%"}, "text/html", None),
        ({"width": "wide", "height": True}, "text/html", None),
        ({"format": "gif"}, "text/html", "format gif"),
        ({"format": "jpeg"}, "text/html", None),
        ({}, "text/html", None),
    ],
)
def test_shapes(meta, kind, reason):
    batch = one(Part("t"), Part(ref="http://a/b.png", meta=meta), content_type=kind)
    assert reasons(ImageShape()(batch)) == [[reason] if reason else []]


def test_banned_words_are_looked_for_in_addresses():
    batch = one(Part(ref="http://a/LOGO.png"), Part(ref="http://a/photo.png"))
    assert [p.ref for p in next(parts_of(ImageShape(banned=("logo",))(batch)))] == ["http://a/photo.png"]


def test_one_unsafe_image_drops_its_document():
    red, blue = encode("PNG", color=(255, 0, 0)), encode("JPEG", color=(0, 0, 255))
    batch = from_parts([
        [Part("a"), Part(None, blue, "b")], [Part(None, blue, "b"), Part("c"), Part(None, red, "r")],
        [Part(None, red[:200], "broken"), Part("d")], [Part("e"), Part(ref="no bytes")], [],
    ])  # fmt: skip
    step = SafeImages(lambda x: (x[..., 0].mean((1, 2)) - x[..., 2].mean((1, 2))) / 255, {"red": 0.5}, 32, batch=2)
    judged = step(batch)
    assert judged.column(DROP).to_pylist() == [None, "unsafe image", None, None, None]
    assert reasons(judged) == [[], [], ["cannot be decoded"], ["no bytes to judge"], []]
    assert step(batch.slice(0, 0)).num_rows == 0


def test_a_classifier_that_fails_names_the_image():
    batch = one(Part(None, encode("PNG"), "http://a/first.png"), Part(None, encode("PNG"), "http://a/second.png"))
    with pytest.raises(DataError, match=r"http://a/second\.png: .*NaN"):
        SafeImages(lambda x: np.array([[0.1, 0.2], [0.1, np.nan]]))(batch)
    with pytest.raises(DataError, match=r"shape \(2, 3\) for 2 images.*hentai, porn"):
        SafeImages(lambda x: np.zeros((2, 3)))(batch)
    with pytest.raises(ConfigError, match="no class"):
        SafeImages(len, {})


# --------------------------------------------------------------------------------------------------------------- edits

PARTS = st.lists(
    st.one_of(
        st.builds(Part, st.text(max_size=5)),
        st.builds(Part, st.none(), st.binary(max_size=5), st.text("abc", min_size=1, max_size=3),
                  st.dictionaries(st.sampled_from(["alt", "width"]), st.integers(0, 9))),
    ),
    max_size=6,
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(PARTS, max_size=5), st.randoms(use_true_random=False), st.integers(0, 3))
def test_removing_images_leaves_the_rest_in_order(documents, random, start):
    batch = from_parts(documents).slice(start)
    documents = documents[start:]
    images = images_of(batch)
    chosen = ["gone" if random.random() < 0.5 else None for _ in images.at]
    assert image_bytes(batch, images.at) == [p.image for parts in documents for p in parts if p.is_image]
    left = remove_images(batch, images, chosen)
    turn = iter(chosen)
    expected = [[p for p in parts if not (p.is_image and next(turn))] for parts in documents]
    assert list(parts_of(left)) == expected
    assert [len(r) for r in reasons(left)] == [len(a) - len(b) for a, b in zip(documents, expected, strict=True)]


def test_undecodable_images_go_when_they_are_hashed():
    good = encode("PNG", (64, 64))
    hashed = HashImages()(one(Part(None, good[:60], "broken"), Part(None, good, "flat"), Part(ref="absent")))
    assert [p.ref for p in next(parts_of(hashed))] == ["flat", "absent"]
    assert reasons(hashed) == [["cannot be decoded"]]


def test_folder_of_a_page_opened_as_a_file(tmp_path: Path):
    (tmp_path / "pic.png").write_bytes(encode("PNG"))
    batch = one(Part(ref=(tmp_path / "pic.png").as_uri()))
    (part,) = next(parts_of(LoadImages(FolderImages(tmp_path))(batch)))
    assert part.meta["width"] == 200
