"""The perceptual hash against a second implementation; duplicates against comparing all pairs."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from bloomery.core.errors import ConfigError
from bloomery.corpus.interleaved import Part, from_parts, parts_of
from bloomery.corpus.interleaved.image_dedup import REASONS, CutImages, ImageDedup, _masks, neighbours
from bloomery.corpus.interleaved.image_hash import HashImages, image_hashes, phash
from bloomery.corpus.steps import REMOVED, decision_notes


def picture(seed: int, size: int = 256) -> Image.Image:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        box = sorted(rng.integers(0, size, 2).tolist()), sorted(rng.integers(0, size, 2).tolist())
        draw.rectangle([box[0][0], box[1][0], box[0][1], box[1][1]], fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def distance(a: int | bool | None, b: int | bool | None) -> int:
    assert isinstance(a, int)
    assert isinstance(b, int)
    return (a ^ b).bit_count()


# ---------------------------------------------------------------------------------------------------------------- hash


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(6, 32))
def test_hashes_are_those_of_a_floating_point_dct(seed, cells):
    """Bits may differ only where a coefficient is within rounding of the median."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (3, cells, cells), dtype=np.uint8)
    pixels = np.array([Image.fromarray(p).resize((32, 32), Image.Resampling.BICUBIC) for p in small])
    found, rough = phash(pixels)
    waves = scipy.fft.dct(scipy.fft.dct(pixels.astype(float), axis=1), axis=2)[:, :8, :8].reshape(-1, 64)
    margin = waves - np.median(waves, axis=1, keepdims=True)
    bits = np.unpackbits(found.astype(">u8").view(np.uint8)).reshape(-1, 64).astype(bool)
    clear = np.abs(margin) > 0.05
    assert clear.mean() > 0.9
    assert (bits == (margin > 0))[clear].all()
    assert rough.tolist() == [int(p.max()) - int(p.min()) >= 8 for p in pixels]


def test_the_same_picture_in_another_size_and_quality_is_near_and_another_is_far():
    same, other = [], []
    for seed in range(40):
        image = picture(seed)
        variants = [
            encoded(image), encoded(image, "JPEG", quality=60), encoded(image.resize((640, 500))),
            encoded(image.point(lambda v: min(255, v + 12))), encoded(image.convert("RGBA")), encoded(image, "WEBP"),
        ]  # fmt: skip
        first, *rest, stranger = image_hashes([*variants, encoded(picture(seed + 1000))])
        same += [distance(first, h) for h in rest]
        other.append(distance(first, stranger))
    assert np.quantile(same, 0.95) <= 4
    assert min(other) > 8


def test_flat_and_broken_images_have_no_hash():
    assert image_hashes([encoded(Image.new("RGB", (200, 200), c)) for c in ("white", "black")]) == [None, None]
    assert image_hashes([b"no image", None, encoded(picture(1))[:100]]) == [False, None, False]
    assert image_hashes([]) == []
    many = [encoded(picture(n, 64)) for n in range(20)]
    assert image_hashes(many * 20) == image_hashes(many) * 20  # over several blocks


def test_transparent_is_white_whatever_its_hidden_colours():
    plain = picture(3).convert("RGBA")
    hidden = plain.copy()
    plain.putalpha(0)
    hidden.putalpha(0)
    hidden.paste((255, 0, 0, 0), (0, 0, 100, 100))
    assert image_hashes([encoded(plain), encoded(hidden)]) == [None, None]


# --------------------------------------------------------------------------------------------------------------- dedup


def brute_force(hashes: np.ndarray, counts: np.ndarray, distance: int) -> np.ndarray:
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= distance
    return near.astype(np.int64) @ counts


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 120), st.integers(0, 8), st.integers(1, 12), st.integers(1, 64))
def test_neighbours_equal_comparing_all_pairs(seed, size, distance, enough, spread):
    """Centres with a few flipped bits each; `spread` bits are used at all, so that some sets are dense."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**63, max(1, size // 5), dtype=np.uint64)
    hashes = rng.choice(centres, size)
    for _ in range(rng.integers(0, distance + 3)):
        hashes ^= np.uint64(1) << rng.integers(0, spread, size).astype(np.uint64)
    hashes, counts = np.unique(hashes, return_counts=True)
    exact, found = brute_force(hashes, counts, distance), neighbours(hashes, counts, distance, enough)
    assert (np.minimum(exact, enough + 1) == np.minimum(found, enough + 1)).all()
    assert (found <= exact).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**64 - 1), st.lists(st.integers(0, 63), max_size=8, unique=True), st.integers(0, 2**32))
def test_near_hashes_share_the_bits_of_a_mask(value, flips, seed):
    other = value
    for bit in flips:
        other ^= 1 << bit
    crowd = np.random.default_rng(seed).integers(0, 2**40, 3000, dtype=np.uint64)
    for masks in (_masks(np.array([value, other], np.uint64), max(1, len(flips))), _masks(crowd, max(1, len(flips)))):
        assert any((value ^ other) & int(mask) == 0 for mask in masks)


def documents_of(layout: list[list[tuple[int, int | None]]]) -> pa.RecordBatch:
    """Documents whose images have this SHA-256 and hash."""
    made = []
    for number, images in enumerate(layout):
        parts: list[Part] = [Part(f"text {number}")]
        for sha, value in images:
            meta = {"sha256": f"{sha:064x}"[::-1]} | ({} if value is None else {"phash": f"{value:016x}"})
            parts += [Part(None, b"x", f"i{sha}", meta), Part("between")]
        made.append(parts)
    return from_parts(made, ids=[f"d{n}" for n in range(len(layout))])


def deduplicated(batch: pa.RecordBatch, step: ImageDedup, cut: int = 2) -> tuple[list[list[str]], Counter[str], dict]:
    """References left in every document, reasons, notes; the batch goes through in two pieces."""
    pieces = [batch.slice(0, cut), batch.slice(cut)]
    answer = step.decide(pa.concat_tables([step.sketch(piece) for piece in pieces]))
    columns = {name: answer.column(name).combine_chunks() for name in answer.schema.names}
    whole = batch.append_column("image_cut", columns["image_cut"])
    result = CutImages()(whole)
    told = (
        Counter(r for some in result.column(REMOVED).to_pylist() for r in some)
        if REMOVED in result.schema.names
        else {}
    )
    left = [[p.ref or "" for p in parts if p.is_image] for parts in parts_of(result)]
    for before, after in zip(parts_of(batch), parts_of(result), strict=True):
        assert [p.text for p in before if not p.is_image] == [p.text for p in after if not p.is_image]
    return left, Counter(told), decision_notes(answer)


def expected(layout: list[list[tuple[int, int | None]]], most: int, distance: int | None) -> list[list[str]]:
    """The rule, image by image and pair by pair."""

    def close(a: int | None, b: int | None) -> bool:
        return distance is not None and a is not None and b is not None and (a ^ b).bit_count() <= distance

    everything = [image for images in layout for image in images]
    result = []
    for images in layout:
        stay: list[tuple[int, int | None]] = []
        for sha, value in images:
            too_often = sum(sha == other for other, _ in everything) > most
            too_often |= sum(close(value, other) for _, other in everything) > most
            if not too_often and not any(sha == s or close(value, v) for s, v in stay):
                stay.append((sha, value))
        result.append([f"i{sha}" for sha, _ in stay])
    return result


IMAGE = st.tuples(
    st.integers(0, 12), st.one_of(st.none(), st.integers(0, 255).map(lambda n: n << 8), st.integers(0, 7))
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(IMAGE, max_size=6), max_size=12), st.integers(1, 12), st.one_of(st.none(), st.integers(0, 4)),
       st.integers(0, 5))  # fmt: skip
def test_dedup_equals_the_rule_however_the_corpus_is_cut(layout, most, distance, cut):
    left, told, notes = deduplicated(documents_of(layout), ImageDedup(most, distance), cut)
    assert left == expected(layout, most, distance)
    assert sum(told.values()) == sum(map(len, layout)) - sum(map(len, left))
    assert told == Counter({name: notes[name] for name in REASONS if notes[name]})


def test_ten_copies_stay_and_eleven_go():
    layout = (
        [[(1, None)] for _ in range(10)] + [[(2, None), (2, None)] for _ in range(5)] + [[(3, None)] for _ in range(11)]
    )
    left, told, _ = deduplicated(documents_of(layout), ImageDedup())
    assert left == [["i1"]] * 10 + [["i2"]] * 5 + [[]] * 11
    assert told == {"repeated in the document": 5, "occurs too often": 11}
    left, _, _ = deduplicated(documents_of(layout), ImageDedup(within=False))
    assert left[10] == ["i2", "i2"]


def test_many_hashes_do_not_take_all_pairs():
    """200,000 random hashes would be 2e10 pairs; a group of 30,000 near each other 4.5e8."""
    rng = np.random.default_rng(0)
    hashes = np.unique(rng.integers(0, 2**63, 200_000, dtype=np.uint64))
    assert neighbours(hashes, np.ones(len(hashes), np.int64), 4, 10).max() <= 10
    group = np.unique(np.uint64(0x123456789) ^ (rng.integers(0, 2**15, 60_000).astype(np.uint64) << np.uint64(20)))
    assert (neighbours(group, np.ones(len(group), np.int64), 4, 10) > 10).mean() > 0.99


def test_real_images_are_hashed_and_cut():
    logo = picture(0)
    variants = [encoded(logo, "JPEG", quality=90 - n) for n in range(12)]
    batch = from_parts([[Part("t"), Part(None, v, f"logo{n}"), Part(None, encoded(picture(n + 5)), f"photo{n}")]
                        for n, v in enumerate(variants)])  # fmt: skip
    batch = HashImages()(batch)
    left, _, _ = deduplicated(batch, ImageDedup(most=10, distance=4))
    assert left == [[f"photo{n}"] for n in range(12)]


@pytest.mark.parametrize("fields", [{"most": 0}, {"distance": 9}, {"distance": -1}])
def test_mistakes(fields):
    with pytest.raises(ConfigError, match="ImageDedup"):
        ImageDedup(**fields)
