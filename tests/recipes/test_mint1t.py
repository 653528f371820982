"""The smoke preset of MINT-1T: claims come from the stages; how order is measured; what the small model is asked."""

from __future__ import annotations

import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery import lab
from bloomery.core.errors import ConfigError
from bloomery.corpus.interleaved import Part
from bloomery.recipes import _mint1t_model as task
from bloomery.recipes import _mint1t_real as real
from bloomery.recipes._mint1t_truth import dealt_out, items, judge, order, texts_then_images
from bloomery.recipes.mint1t import CURATED, DEALT, INTERLEAVED, OBELICS, OURS, SHUFFLED, TOP_DOWN, Mint1T
from bloomery.web.interleave.html import html_parts
from bloomery.worlds.interleaved_pages import SHAPES, illustrated_web
from bloomery.worlds.latex_papers import known_papers

pytest.importorskip("selectolax", reason="needs the extra `interleave`")
pytest.importorskip("pypdfium2", reason="needs the extra `interleave`")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with real-looking files, and a finished smoke run over it."""
    root = tmp_path_factory.mktemp("mint1t")
    (paper,) = known_papers(1, seed=5)
    source = root / "files" / "latex" / "one"
    for name, data in paper.files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    body = "".join(f"<p>{v}</p>" if k == "text" else f'<img src="{v}">' for k, v in paper.order)
    (source / "rendered.html.gz").write_bytes(gzip.compress(f"<html><body>{body}</body></html>".encode()))
    lab.run("mint1t", "smoke", root / "run", quiet=True, real=str(root / "files"))
    return root / "run"


def test_the_smoke_run(finished: Path) -> None:
    results = {stage["name"]: stage["result"] for stage in read(finished / "stages.json")}
    pages, claims = results["pages/0"], read(finished / "claims.json")["claims"]
    kept, loses, apart, lines, bad, good, copies, columns, down, latex, shape = claims
    assert kept["ours"]["0"] == pages[CURATED]["lcs"][CURATED] > 0.99
    assert loses["baseline"]["0"] == pages[OBELICS]["lcs"][CURATED] < 0.9
    assert apart["baseline"]["0"] == pages[CURATED]["adjacent"][DEALT] < 0.5 < apart["ours"]["0"]
    assert lines["ours"]["0"] == pages[CURATED]["lines_removed"]
    assert bad["ours"]["0"] == pages[CURATED]["bad_removed"] == 1
    assert good["ours"]["0"] == pages[CURATED]["good_lost"] == 0
    assert copies["ours"]["0"] == pages[CURATED]["copies_removed"] == 1
    assert results["web/0"] == pages[CURATED]["steps"][0][1] == 60
    assert columns["ours"]["0"] == 1 > down["baseline"]["0"]
    assert set(results["pdf/0"]) == {OURS, TOP_DOWN}
    assert (latex["ours"]["0"], results["latex/0"]["exact"]) == (1, 1)
    assert latex["baseline"]["0"] < 0.9
    assert shape["ours"]["0"] == results["order/0"][INTERLEAVED]["among"]
    assert shape["baseline"]["0"] == results["order/0"][SHUFFLED]["among"]
    ((name, beside, paragraphs, images, tau),) = results["real"]["latex"]
    found, of = map(int, paragraphs.split(" of "))
    assert (name, beside, tau) == ("one", "its HTML by LaTeXML", "1.000")
    assert of - 1 <= found <= of  # one may have no words of its own
    assert images.split(" of ")[0] == images.split(" of ")[1]
    assert (finished / "report.html").read_text(encoding="utf-8").count("<svg") >= 3


# ---------------------------------------------------------------------------------------------------------- measures


def test_how_order_is_measured() -> None:
    truth = [("text", "a"), ("image", "1"), ("text", "b"), ("image", "2"), ("text", "c")]
    assert order(truth, truth) == (1.0, 1.0)
    assert order(truth, [("text", "menu"), *truth, ("image", "logo")]) == (1.0, 1.0)
    assert order(truth, texts_then_images(truth)) == (3 / 5, 0.0)
    assert order(truth, truth[:3]) == (3 / 5, 0.5)
    assert order(truth, [*truth[:2], ("image", "banner"), *truth[2:]]) == (1.0, 0.5)
    assert order(truth, []) == (0.0, 0.0)


@given(st.lists(st.sampled_from([("text", "a"), ("text", "b"), ("image", "1"), ("image", "2"), ("image", "3")])))
def test_baselines_hold_what_the_document_holds(found: list[Any]) -> None:
    for other in (texts_then_images(found), dealt_out(found, np.random.default_rng(0))):
        assert sorted(other) == sorted(found)
    kinds = [kind for kind, _ in found]
    assert [kind for kind, _ in dealt_out(found, np.random.default_rng(1))] == kinds


def test_judgement_of_pages_as_they_are_read_and_of_perfect_ones() -> None:
    web = illustrated_web(60, 1)
    raw = {page.url: html_parts(page.html, page.url) for page in web.pages}
    found = judge(web, raw, 0)
    assert found["lcs"]["curated"] == 1
    assert found["bad_removed"] == 0
    assert found["copies_removed"] < 1
    assert found["lines_removed"] == pytest.approx(1 / 3)  # the footer is known by its class
    assert found["banned_left"] == found["banned"] > 0
    perfect = {
        page.url: [Part(v) if k == "text" else Part(None, None, v) for k, v in page.order]
        for page in web.pages if page.copy_of < 0 and not page.is_banned
    }  # fmt: skip
    found = judge(web, perfect, 0)
    for key in ("bad_removed", "copies_removed", "lines_removed"):
        assert found[key] == 1, key
    assert (found["good_lost"], found["banned_left"], found["pages_lost"]) == (0, 0, 0)
    assert found["adjacent"]["curated"] == 1
    assert found["adjacent"]["images dealt out"] == pytest.approx(0.25, abs=0.12)
    gone = judge(web, {}, 0)
    assert (gone["good_lost"], gone["lcs"]["curated"], gone["pages_lost"]) == (1, 0, found["pages"])


def test_agreement_of_two_readings() -> None:
    paragraphs = [[f"{letter}{i}" for i in range(8)] for letter in "abcdef"]
    same = real.agreement([*paragraphs, "x.png"], [*paragraphs, "other.png"])
    assert same == (6, 6, 1, 1.0)
    assert real.agreement(paragraphs, paragraphs[::-1]).tau == -1
    assert real.agreement(["1", *paragraphs], [*paragraphs, "1", "2"]).tau == 1  # no partner: not the same number
    by_name = real.agreement(["1", *paragraphs, "2"], [*paragraphs, "1", "2"], by_name=True)
    assert by_name.tau is not None
    assert by_name.tau < 1
    assert real.agreement(paragraphs, [["z"] * 20, *paragraphs[:3]]).found == 3
    assert real.agreement([["too", "short"]], paragraphs) == (0, 0, 0, None)
    source = "Title\n=====\n\nWords of :mod:`a.b` and `this <http://x>`_.\n\n.. image:: figs/one.png\n\n::\n\n    code"
    assert real.rst_pieces(source) == [["words", "of", "a", "b", "and", "this"], "one"]


# ------------------------------------------------------------------------------------------------------- small model


def test_images_and_words_as_tokens() -> None:
    web = illustrated_web(4, 2)
    page = web.pages[0]
    parts = [Part(v) if k == "text" else Part(None, web.images[v], v) for k, v in page.order]
    words = task.vocabulary([parts])
    tokens = task.encode(parts, words)
    assert set(SHAPES) <= set(words)
    ends = np.flatnonzero(tokens == task.IMAGE_END)
    addresses = [value for kind, value in page.order if kind == "image"]
    assert [int(token) for token in tokens[ends + 1]] == [words[web.shapes[address]] for address in addresses]
    cells = tokens[ends[0] - task.GRID**2 : ends[0]] - task.VOCAB_SIZE
    assert (cells // task.LEVELS).tolist() == list(range(task.GRID**2))
    assert min(words.values()) > task.IMAGE_END
    assert task.encode([Part("unknownword")], words).size == 0


@given(st.lists(st.sampled_from(["a\n\nb", "c", None]), min_size=1, max_size=6), st.integers(0, 99))
def test_shuffled_documents_hold_the_same_parts(texts: list[str | None], seed: int) -> None:
    document = [Part(text) if text else Part(None, None, f"i{n}") for n, text in enumerate(texts)]
    apart = task.paragraphs_apart(document)
    assert items(apart) == items(document)
    (mixed,) = task.shuffled([apart], seed)
    assert sorted(map(repr, mixed)) == sorted(map(repr, apart))
    assert [mixed] == task.shuffled([apart], seed)


def test_every_image_is_asked_for_once_whatever_the_window() -> None:
    from bloomery.core.seeds import generator
    from bloomery.models import Decoder
    from bloomery.recipes._looped_tasks import decoder

    web = illustrated_web(6, 3)
    documents = [
        [Part(v) if k == "text" else Part(None, web.images[v], v) for k, v in page.order] for page in web.pages
    ]
    words = task.vocabulary(documents)
    model = Decoder(decoder(task.FIRST_WORD + len(words), 32, 1, 1, 256), generator(0, "init"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked = [task.word_after_image(model, documents, words, size)["asked"] for size in (40, 64, 256)]
    assert asked == [sum(kind == "image" for page in web.pages for kind, _ in page.order)] * 3


@pytest.mark.parametrize("fields", [{"pages": 0}, {"dim": 48}, {"rate": 0.0}, {"real": "no/such/folder"}])
def test_bad_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Mint1T(**fields)
