"""`--recipe mint1t` over pages and papers with planted faults: what stays, why the rest went, on every engine."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bloomery.core.errors import ConfigError, DataError
from bloomery.corpus import Report, plan, preset, run
from bloomery.corpus.interleaved import WordLists, parts_of
from bloomery.corpus.interleaved.images import GivenImages
from bloomery.corpus.interleaved.webdataset import read_webdataset
from bloomery.corpus.readers import read_documents as read_corpus
from bloomery.web import read_documents

for module in ("pypdfium2", "selectolax", "PIL"):
    pytest.importorskip(module, reason="needs the extra `interleave`")

sys.path.insert(0, str(Path(__file__).parent))  # worker processes import the classifier by name
from mint1t_world import World, make  # noqa: E402

READ = functools.partial(read_documents, extract="interleaved")


def nothing_unsafe(pixels: np.ndarray) -> np.ndarray:
    return np.zeros((len(pixels), 2))


def steps(world: World, **options):
    return preset("mint1t", images=GivenImages(world.images), classifier=nothing_unsafe, **options)


def contents(folder: Path) -> dict[str, bytes]:
    found = {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.suffix in (".parquet", ".tar")
    }
    return found | {"report": json.dumps(Report.load(folder / "report.json").to_dict(timings=False)).encode()}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return make(tmp_path_factory.mktemp("world") / "in")


@pytest.fixture(scope="module")
def inline(world, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inline")
    run(steps(world), world.folder, folder, read=READ, quiet=True)
    return folder


def test_good_documents_stay_with_their_good_images_in_place(world, inline):
    found = {}
    for path in sorted(inline.glob("0*.parquet")):
        for batch in read_corpus(path):
            for url, parts in zip(batch.column("url").to_pylist(), parts_of(batch), strict=True):
                found[url] = parts
    papers = {url: found.pop(url) for url in list(found) if url.startswith("file:")}
    assert {url: [p.ref for p in parts if p.is_image] for url, parts in found.items()} == world.kept
    for url, parts in found.items():
        assert all(part.image == world.images[part.ref] for part in parts if part.is_image)
        if "good" in url:  # an image stands after the text that it followed
            assert [part.is_image for part in parts] == [False, True, False, True, False]
        assert all("phash" in part.meta and part.meta["width"] == 220 for part in parts if part.is_image)
    assert {Path(url).name: sum(p.is_image for p in parts) for url, parts in papers.items()} == {
        "paper.pdf": 1,
        "main.tex": 1,
    }


def test_every_loss_has_its_reason(world, inline):
    dropped = {
        row["url"]: row["reason"]
        for path in inline.glob("dropped/*.parquet")
        for row in pq.read_table(path).to_pylist()
    }
    assert set(dropped) == set(world.fate)
    for url, reason in dropped.items():
        assert reason.startswith(world.fate[url]), url
    report = Report.load(inline / "report.json")
    assert report.documents_in == len(world.fate) + len(world.kept) + 2
    assert report.documents_out == len(world.kept) + 2
    removed = {step.name: step.removed for step in report.steps if step.removed}
    pages = len([url for url in world.kept if "good" in url])
    assert removed == {
        "LoadImages": {"not found": pages // 4, "not an image of a known kind": pages // 4},
        "ImageShape": {"too small": pages // 4, "too long or too wide": pages // 4},
        "CutImages": {
            "nearly the same occurs too often": pages, "occurs too often": 15, "repeated in the document": pages + 1,
        },
        "CutParagraphs": {"duplicate paragraph": 2},
    }  # fmt: skip


@pytest.mark.parametrize("engine", ["processes", "ray"])
def test_every_engine_writes_the_same_bytes(world, inline, tmp_path, engine):
    if engine == "ray":
        pytest.importorskip("ray", reason='needs pip install "bloomery[ray]"')
    run(steps(world), world.folder, tmp_path, read=READ, engine=engine, workers=2, quiet=True)
    assert contents(tmp_path) == contents(inline)


def test_batches_do_not_change_the_documents(world, inline, tmp_path):
    read = functools.partial(read_documents, extract="interleaved", batch_rows=3)
    run(steps(world), world.folder, tmp_path, read=read, quiet=True)
    for path in sorted(inline.glob("0*.parquet")):
        assert pq.read_table(path) == pq.read_table(tmp_path / path.name)


def test_a_logo_may_cost_the_image_alone(world, tmp_path):
    report = run(steps(world, banned="image"), world.folder, tmp_path, read=READ, quiet=True)
    by_name = {step.name: step for step in report.steps}
    assert "ImageAddressBan" not in by_name
    assert by_name["ImageShape"].removed["banned word in the address"] == 3


def test_the_plan_knows_the_inputs(world):
    found = plan(steps(world), world.folder)
    assert found.files == 5
    assert {step.name for step in found.steps} >= {"LoadImages", "ImageDedup", "BloomDedup"}
    assert found.disk_bytes > 0


def test_on_the_command_line(world, inline, tmp_path, capsys):
    from bloomery.cli import curate, inspect

    for url, data in world.images.items():
        path = tmp_path / "mirror" / url.removeprefix("https://")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    base = [str(world.folder), str(tmp_path / "out"), "--recipe", "mint1t"]
    common = [*base, "--image-folder", str(tmp_path / "mirror")]
    assert curate.main([*common, "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 5
    assert curate.main([*common, "--format", "tar", "--engine", "inline", "--quiet", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["documents_out"] == Report.load(inline / "report.json").documents_out
    kept = {}
    for path in sorted((tmp_path / "out").glob("0*.tar")):
        for batch in read_webdataset(path):
            for url, parts in zip(batch.column("url").to_pylist(), parts_of(batch), strict=True):
                kept[url] = [p.ref for p in parts if p.is_image]
    assert {url: refs for url, refs in kept.items() if not url.startswith("file:")} == world.kept
    assert inspect.main([str(tmp_path / "out"), "--read", str(tmp_path / "read.html")]) == 0
    page = (tmp_path / "read.html").read_text()
    assert page.count("<article") == 20
    assert page.count('<img src="data:image/jpeg') > 20
    with pytest.raises(DataError, match="nowhere: no such folder of images"):
        curate.main(
            [base[0], str(tmp_path / "other"), *base[2:], "--image-folder", "nowhere", "--engine", "inline", "--quiet"]
        )
    with pytest.raises(ConfigError, match="needs one place for images"):
        curate.main(base)
    with pytest.raises(ConfigError, match="images belong to --recipe mint1t"):
        curate.main([*base[:2], "--image-cache", "x"])


def test_steps_in_a_file(world, tmp_path, capsys):
    from bloomery.cli import curate

    (tmp_path / "steps.yaml").write_text(
        "steps:\n  - LoadImages: {folder: nowhere, formats: [png]}\n  - ImageShape: {min_side: 10}\n  - HashImages\n"
        "  - ImageDedup: {most: 3, distance: null}\n  - CutImages\n  - ImageTokens\n"
    )
    made = curate.load_steps(tmp_path / "steps.yaml")
    assert [step.name for step in made] == [
        "LoadImages",
        "ImageShape",
        "HashImages",
        "ImageDedup",
        "CutImages",
        "ImageTokens",
    ]
    assert made[0].source.folder == Path("nowhere").absolute()
    assert made[0].formats == ("png",)
    (tmp_path / "fetch.yaml").write_text("steps:\n  - LoadImages: {cache: c, retries: 0}\n  - ImageShape\n")
    fetch, load, _ = curate.load_steps(tmp_path / "fetch.yaml")
    assert (fetch.name, load.name) == ("FetchImages", "LoadImages")
    assert fetch.source == load.source
    assert curate.make_step("LoadImages", {"cache": "c", "retries": 3, "max_pixels": 9}).source.retries == 3
    assert curate.make_step("LoadImages").source is None
    with pytest.raises(ConfigError, match="unknown field 'retrys' of WebImages"):
        curate.make_step("LoadImages", {"cache": "c", "retrys": 3})
    out = tmp_path / "out"
    assert curate.main([str(world.folder), str(out), "--interleaved", "--use", "ImageCount", "ImageTokens", "--engine",
                        "inline", "--quiet"]) == 0  # fmt: skip
    rows = [row for path in out.glob("0*.parquet") for row in pq.read_table(path).to_pylist()]
    assert any("<image>" in row["parts"][0]["text"] for row in rows)


def test_the_filters_of_obelics_from_their_own_file(tmp_path):
    from bloomery.cli import curate

    file, lists = tmp_path / "filters.yaml", tmp_path / "lists.json"
    file.write_text("cond_check_perplexity_score_doc_level: False\nvalid_formats: !!set {jpg, png}\n")
    lists.write_text('{"common_words": ["the", "of"]}')
    made = curate.load_steps(file, word_lists=lists)
    assert [step.name for step in made] == ["ImageShape", "ParagraphRules", "ImageCount", "DocumentRules"]
    assert made[1].rules.lists.common_words == ("the", "of")
    with pytest.raises(ConfigError, match="list of common words"):
        curate.load_steps(file)
    assert curate.make_step("PhraseDedup", {"max_words": 3}).max_words == 3
    assert curate.make_step("ReplacePII").emails


def test_obelics_runs_over_pages(world, tmp_path):
    report = run(
        preset("obelics", images=GivenImages(world.images)), [p for p in world.inputs if p.suffix == ".gz"],
        tmp_path, read=READ, quiet=True,
    )  # fmt: skip
    assert report.documents_out > 0
    common = preset("obelics", lists=WordLists(common_words=("the",)))
    assert {step.rules.min_common_words for step in common if hasattr(step, "rules")} == {0.8, 0.9}
    with pytest.raises(ConfigError, match="recipe obelics"):
        preset("obelics", nonsense=1)
