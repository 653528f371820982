"""Inputs and outputs behind fsspec: in memory, and on disk through its `local://` driver, which processes share."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from bloomery.core.errors import ConfigError, DataError, EmptyError, MissingExtraError, StorageError
from bloomery.corpus import ExactDedup, Length, Report, find_inputs, read_documents, run
from bloomery.corpus.documents import texts
from bloomery.corpus.readers import RUN_STATE
from bloomery.corpus.remote import Mirror, Url

sys.path.insert(0, str(Path(__file__).parent))
import engine_steps
from engine_steps import Nothing
from test_engine import STEPS, contents, write_inputs


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """An empty store in memory that holds the inputs of the engine's tests under memory://in."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    write_inputs(tmp_path / "in")
    fs.put(str(tmp_path / "in"), "memory://in", recursive=True)
    yield fs
    fs.store.clear()


def downloaded(fs, folder: str, into: Path) -> Path:
    for name in fs.find(folder):
        target = into / name.strip("/").removeprefix(folder.strip("/") + "/")
        target.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(name, str(target))
    return into


def test_a_run_from_store_to_store_equals_the_local_one(memory, tmp_path):
    run(STEPS, tmp_path / "in", tmp_path / "local", quiet=True)
    report = run(STEPS, "memory://in", "memory://out", quiet=True)
    there = downloaded(memory, "out", tmp_path / "there")
    assert contents(there) == contents(tmp_path / "local")
    assert Report.load(there / "report.json") == report
    assert not list((tmp_path / "cache").rglob("*.parquet"))  # nothing large stays here
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def test_another_process_and_another_machine_take_the_run_over(memory, tmp_path, monkeypatch):
    """Through local://, a driver that worker processes see as well; the second machine has no scratch folder."""
    source, target = f"local://{tmp_path}/in", f"local://{tmp_path}/out"
    log = tmp_path / "log"
    steps = [engine_steps.Logged(str(log), fail_at="part2.jsonl")]
    with pytest.raises(StorageError, match="part2"):
        run(steps, source, target, scratch=tmp_path / "here", engine="processes", workers=1, quiet=True)
    records = sorted(path.name for path in (tmp_path / "out" / RUN_STATE / "segment-0").iterdir())
    assert records == ["00000-part0.json", "00001-part1.json"]
    monkeypatch.setenv("ENGINE_TEST_HEALED", "1")
    run(steps, source, target, scratch=tmp_path / "elsewhere", quiet=True)
    assert log.read_text().split()[3:] == ["part2.jsonl"]
    run(steps, tmp_path / "in", tmp_path / "expected", quiet=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_barriers_on_another_machine_are_decided_again(memory, tmp_path, monkeypatch):
    monkeypatch.setattr("bloomery.corpus.state.State.publish", _fails_at("00001-", "segment-1"))
    with pytest.raises(StorageError):
        run(STEPS, "memory://in", "memory://out", scratch=tmp_path / "here", quiet=True)
    monkeypatch.undo()
    run(STEPS, "memory://in", "memory://out", scratch=tmp_path / "elsewhere", quiet=True)
    run(STEPS, tmp_path / "in", tmp_path / "local", quiet=True)
    assert contents(downloaded(memory, "out", tmp_path / "there")) == contents(tmp_path / "local")


def _fails_at(*names):
    from bloomery.corpus.state import State

    publish = State.publish

    def fails(self, job):
        if all(name in str(job.record) for name in names):
            raise StorageError("the line is dead")
        publish(self, job)

    return fails


def test_a_half_sent_file_has_no_record(memory, tmp_path, monkeypatch):
    push, cut = Mirror.push, []

    def half(self, path, keep=True):
        if path.name == "00001-part1.parquet" and path.parent.name != "dropped" and not cut:
            cut.append(path)
            memory.pipe_file("/out/00001-part1.parquet", path.read_bytes()[:100])  # a store without renaming shows this
            raise StorageError("the line is dead")
        push(self, path, keep)

    monkeypatch.setattr(Mirror, "push", half)
    with pytest.raises(StorageError, match="the line is dead"):
        run([Length(min_words=3)], "memory://in", "memory://out", quiet=True)
    records = [name.rpartition("/")[2] for name in memory.find(f"out/{RUN_STATE}/segment-0")]
    assert records == ["00000-part0.json"]
    run([Length(min_words=3)], "memory://in", "memory://out", quiet=True)
    there = downloaded(memory, "out", tmp_path / "there")
    run([Length(min_words=3)], tmp_path / "in", tmp_path / "local", quiet=True)
    assert contents(there) == contents(tmp_path / "local")


def test_fewer_bytes_than_were_sent_are_noticed(memory, monkeypatch):
    monkeypatch.setattr(type(memory), "size", lambda self, path: 3)
    with pytest.raises(StorageError, match="3 arrived"):
        run([Length(min_words=3)], "memory://in", "memory://out", quiet=True)


def test_a_changed_input_and_another_run(memory, tmp_path):
    run([Length(min_words=3)], "memory://in", "memory://out", quiet=True)
    memory.pipe_file("/in/part1.jsonl", b'{"text": "now these words are here instead"}\n')
    report = run([Length(min_words=3)], "memory://in", "memory://out", quiet=True)
    assert report.documents_in == 121
    with pytest.raises(ConfigError, match=r"memory://out: holds a run with other steps"):
        run([Length(min_words=4)], "memory://in", "memory://out", quiet=True)
    run([Length(min_words=4)], "memory://in/part0.jsonl", "memory://out", resume=False, quiet=True)
    assert [n for n in memory.find("out") if n.endswith("parquet") and "dropped" not in n] == [
        "/out/00000-part0.parquet"
    ]
    memory.pipe_file("/full/thesis.txt", b"precious")
    for resume in (True, False):
        with pytest.raises(ConfigError, match="no curation run"):
            run([Length()], "memory://in", "memory://full", resume=resume, quiet=True)
    assert memory.cat_file("/full/thesis.txt") == b"precious"


def test_nothing_left_still_writes_the_report(memory):
    with pytest.raises(EmptyError):
        run([Nothing(), ExactDedup()], "memory://in", "memory://out", quiet=True)
    assert json.loads(memory.cat_file("/out/report.json"))["documents_out"] == 0


def test_what_an_address_stands_for(memory, tmp_path):
    for name in (
        "a/x.txt",
        "a/y.md",
        "b/1.parquet",
        "b/_SUCCESS.jsonl",
        ".hidden/z.jsonl",
        "b/note.pdf",
        "b/note.docx",
    ):
        memory.pipe_file(f"/data/{name}", b"words")
    memory.pipe_file("/data/run/report.json", b"{}")
    memory.pipe_file("/data/run/dropped/0.parquet", b"")
    found = [str(url) for url in find_inputs("memory://data")]
    assert found == ["memory:///data/a/", "memory:///data/b/1.parquet", "memory:///data/b/note.pdf"]
    assert [url.name for url in find_inputs("memory://in/part[01].jsonl")] == ["part0.jsonl", "part1.jsonl"]
    (batch,) = read_documents(Url(found[0]))
    assert batch["id"].to_pylist() == ["x.txt", "y.md"]
    assert find_inputs(f"file://{tmp_path}/in/part0.jsonl") == [tmp_path / "in" / "part0.jsonl"]
    (first, *_) = read_documents("memory://in/part0.jsonl")
    assert len(texts(first)) == 60


def test_a_remote_archive_goes_through_the_web_reader(memory, tmp_path):
    from bloomery.web import WarcWriter
    from bloomery.web import read_documents as read_pages

    archive = WarcWriter(tmp_path, "pages", "test")
    page = b"<title>T</title><p>" + b"A sentence long enough to be content, with commas. " * 8
    archive.write_page("http://a.example/1", 200, "OK", [("Content-Type", "text/html")], page, {})
    archive.close()
    memory.put_file(str(archive.path), "/pages/a.warc.gz")
    memory.pipe_file("/pages/folder/b.html", page)
    report = run([Length(min_words=3)], "memory://pages", "memory://out", read=read_pages, quiet=True)
    assert report.documents_out == 2
    assert pq.read_table(memory.open("/out/00000-a.parquet"))["url"].to_pylist() == ["http://a.example/1"]


@pytest.mark.parametrize(
    ("address", "kind", "message"),
    [
        ("memory://nowhere", DataError, "memory://nowhere: no such file or folder"),
        ("memory://in/*.parquet", DataError, "nothing matches"),
        ("memory://in/part0.pdf", DataError, "no such file"),
        ("nonsense://x/y", ConfigError, "nonsense://x/y: not an address that can be read"),
        ("zip://a::memory://b", ConfigError, "chained"),
        ("dropbox://bucket/x.jsonl", MissingExtraError, "no driver for such addresses"),
    ],
)
def test_mistakes_name_the_address(memory, address, kind, message):
    with pytest.raises(kind, match=message.replace("*", r"\*")):
        find_inputs(address)
