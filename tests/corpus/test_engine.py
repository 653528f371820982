"""Same bytes from every engine, after every kill; every account true; every mistake one clear line."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rich
from rich.console import Console

from bloomery.core import files
from bloomery.core.errors import BloomeryError, ConfigError, DataError, EmptyError, StorageError
from bloomery.corpus import (
    ExactDedup,
    Length,
    NearDedup,
    Repetition,
    Report,
    Select,
    find_inputs,
    plan,
    read_documents,
    run,
)
from bloomery.corpus.documents import texts
from bloomery.corpus.steps import kept

sys.path.insert(0, str(Path(__file__).parent))  # worker processes import the example steps by name
import engine_steps
from engine_steps import Clumsy, Deadly, DeadlyOnce, Halves, Nothing, Picky, Stamp, WordCount

STEPS = [Length(min_words=5), Picky(), Halves(), WordCount(), ExactDedup(), Stamp(), NearDedup(), Repetition()]


def write_inputs(folder: Path, n_files: int = 3, documents: int = 60) -> Path:
    """JSON lines with good, short, broken, split, duplicated and nearly duplicated documents."""
    rng = random.Random(5)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(n_files):
        lines = []
        for row in range(documents):
            words = [f"w{rng.randrange(3_000)}" for _ in range(rng.randrange(1, 80))]
            if row % 10 == 3:
                words = [f"shared{k}" for k in range(60)] + ([f"x{row}"] if row % 20 == 3 else [])
            if row % 17 == 5:
                words.append("explode")
            record = {"text": " ".join(words), "url": f"https://host{row % 3}.org/{index}/{row}"}
            lines.append("{broken" if row % 25 == 7 else json.dumps(record))
        (folder / f"part{index}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """All Parquet files of a run, by name; the report without timings under its own name."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}
    if (folder / "report.json").exists():
        report = Report.load(folder / "report.json").to_dict(timings=False)
        found["report.json"] = json.dumps(report).encode()
    return found


def all_texts(folder: Path) -> list[str]:
    return [
        t
        for path in sorted(folder.glob("*.parquet"))
        for batch in read_documents(path)
        for t in texts(batch).to_pylist()
    ]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def expected(inputs, tmp_path_factory) -> dict[str, bytes]:
    """What an uninterrupted inline run writes."""
    folder = tmp_path_factory.mktemp("expected")
    run(STEPS, inputs, folder, quiet=True)
    return contents(folder)


# ------------------------------------------------------------------------------------------------------------ engines


def test_engines_write_the_same_bytes(inputs, expected, tmp_path):
    report = run(STEPS, inputs, tmp_path, engine="processes", workers=2, quiet=True)
    assert contents(tmp_path) == expected
    assert len([name for name in expected if "/" not in name and name.endswith(".parquet")]) == 3
    assert report.to_dict(timings=False) == json.loads(expected["report.json"])


def test_a_step_that_takes_few_documents_gets_few(inputs, tmp_path):
    few = [WordCount(), engine_steps.AtMost(), engine_steps.AtLeast("words", 30), Picky(), engine_steps.AtMost()]
    report = run(few, inputs, tmp_path / "few", quiet=True)
    whole = run([WordCount(), engine_steps.AtLeast("words", 30), Picky()], inputs, tmp_path / "whole", quiet=True)
    assert all_texts(tmp_path / "few") == all_texts(tmp_path / "whole")
    assert (report.documents_out, report.text_bytes_out) == (whole.documents_out, whole.text_bytes_out)
    assert report.steps[3].dropped == whole.steps[2].dropped
    rows = pq.read_table(next((tmp_path / "few").glob("00000*.parquet")))["rows"].to_pylist()
    assert set(rows) <= {1, 2, 3}


def test_nothing_but_the_result_is_left(inputs, tmp_path):
    run(STEPS, inputs, tmp_path, quiet=True)
    assert not list(tmp_path.rglob("*.arrow"))
    assert not list(tmp_path.rglob("*.tmp"))


def test_batches_do_not_change_the_result(inputs, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("bloomery.corpus.readers.BATCH_DOCUMENTS", 7)
    run(STEPS, inputs, tmp_path, quiet=True)
    assert all_texts(tmp_path)
    for name, content in contents(tmp_path).items():
        if name.endswith(".parquet"):
            found, wanted = (pq.read_table(pa.BufferReader(data)) for data in (content, expected[name]))
            order = [("id", "ascending")] if name.startswith("dropped") else []  # there: step by step within a batch
            assert (found.sort_by(order) if order else found) == (wanted.sort_by(order) if order else wanted), name


# ------------------------------------------------------------------------------------------------------------- accounts


def test_the_report_accounts_for_every_document(expected):
    report = Report.from_dict(json.loads(expected["report.json"]))
    assert [step.name for step in report.steps] == ["read", *(step.name for step in STEPS)]
    before = report.documents_in
    for step in report.steps:
        assert step.documents_in == before
        lost = sum(step.dropped.values()) + sum(step.errors.values())
        assert step.documents_in + step.split == step.kept + lost
        before = step.kept
    assert report.documents_out == before > 0
    by_name = {step.name: step for step in report.steps}
    assert by_name["read"].errors == {"error: not valid JSON": 9}
    assert by_name["Picky"].errors == {"error: ValueError: cannot read explode": sum(by_name["Picky"].errors.values())}
    assert by_name["Halves"].split > 0
    assert by_name["NearDedup"].notes["largest_cluster"] >= 1
    assert sum(documents for documents, _ in report.sources.values()) == report.documents_in
    assert sum(kept for _, kept in report.sources.values()) == report.documents_out
    assert {"host0.org", "host1.org", "host2.org", "part0.jsonl"} == set(list(report.sources)[:3]) | {"part0.jsonl"}


def test_parts_that_a_step_takes_out_are_counted_and_leave_no_column(inputs, tmp_path, capsys):
    long = [word for text in _texts_in(inputs) for word in text.split() if len(word) > 6]
    for engine in ("inline", "processes"):
        report = run([engine_steps.NoLongWords()], inputs, tmp_path / engine, engine=engine, workers=2, quiet=True)
        assert report.steps[1].removed == {"long word": len(long)}
        assert "parts: long word" in " ".join(_printed(report, capsys).split())
    assert contents(tmp_path / "inline") == contents(tmp_path / "processes")
    assert pq.read_schema(next((tmp_path / "inline").glob("*.parquet"))).names == ["id", "url", "parts", "meta"]
    assert Report.load(tmp_path / "inline" / "report.json").steps[1].removed == report.steps[1].removed


def _texts_in(folder: Path) -> list[str]:
    return [
        t for path in sorted(folder.iterdir()) for batch in read_documents(path) for t in texts(kept(batch)).to_pylist()
    ]


def _printed(report: Report, capsys) -> str:
    Console(width=200).print(report.table())
    return capsys.readouterr().out


def test_dropped_documents_are_saved_with_their_reason(expected):
    rows = []
    for name, content in expected.items():
        if name.startswith("dropped/"):
            rows += pq.read_table(pa.BufferReader(content)).to_pylist()
    report = Report.from_dict(json.loads(expected["report.json"]))
    counted = {(s.name, r): n for s in report.steps for r, n in (*s.dropped.items(), *s.errors.items())}
    saved: dict[tuple[str, str], int] = {}
    for row in rows:
        saved[row["step"], row["reason"]] = saved.get((row["step"], row["reason"]), 0) + 1
    assert saved == counted
    example = next(example for example in report.examples if example["step"] == "Length")
    assert example["text"] in [row["parts"][0]["text"][:160] for row in rows]


def test_a_split_document_becomes_rows_with_ids_of_their_own(inputs, tmp_path):
    run([Halves()], inputs, tmp_path, quiet=True)
    ids = [i for path in sorted(tmp_path.glob("*.parquet")) for i in pq.read_table(path)["id"].to_pylist()]
    assert any(name.endswith("#1") for name in ids)
    assert sum(name.endswith("#0") for name in ids) == sum(name.endswith("#1") for name in ids)


def test_report_prints_and_round_trips(expected, capsys):
    report = Report.from_dict(json.loads(expected["report.json"]))
    rich.print(report.table())
    printed = capsys.readouterr().out
    assert "NearDedup" in printed
    assert "host0.org" in printed
    assert Report.from_dict(report.to_dict()) == report
    assert report.top_reasons(1)[0][1] == max(n for _, n in report.top_reasons(100))


def test_extra_columns_survive_and_can_be_read(tmp_path):
    table = pa.table({"text": ["a b", "c d e"], "quality": [0.1, 0.9], "url": ["u", "v"]})
    pq.write_table(table, tmp_path / "in.parquet")
    run([engine_steps.AtLeast("quality", 0.5)], tmp_path / "in.parquet", tmp_path / "out", quiet=True)
    result = pq.read_table(tmp_path / "out" / "00000-in.parquet").to_pylist()
    assert [(row["quality"], row["parts"][0]["text"]) for row in result] == [(0.9, "c d e")]


def test_a_damaged_file_costs_that_file_only(inputs, tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 but not really")
    report = run([WordCount()], [inputs, tmp_path / "bad.parquet"], tmp_path / "out", quiet=True)
    assert report.steps[0].errors["error: unreadable file"] == 1
    assert report.documents_out == sum(step.kept for step in report.steps[-1:]) > 100


# --------------------------------------------------------------------------------------------------------------- resume

KILLED_RUN = """
import sys
sys.path.insert(0, {tests!r})
from test_engine import STEPS
from bloomery.corpus import run
if __name__ == "__main__":
    run(STEPS, sys.argv[1], sys.argv[2], engine=sys.argv[3], workers=2, quiet=True)
"""


@pytest.mark.parametrize("engine", ["inline", "processes"])
def test_killed_at_any_time_it_ends_with_the_same_bytes(inputs, expected, tmp_path, engine):
    """Each child process kills itself (SIGKILL) just before or after one of its renames; see `engine_steps`."""
    rng, out, script = random.Random(engine), tmp_path / "out", tmp_path / "killed.py"
    script.write_text(KILLED_RUN.format(tests=str(Path(__file__).parent)))
    left_behind = set()
    for _ in range(5):
        when = f"{rng.choice(['before', 'after'])} {rng.randrange(2, 9)}"
        command = [sys.executable, str(script), str(inputs), str(out), engine]
        child = subprocess.run(command, env={**os.environ, "ENGINE_TEST_KILL": when}, capture_output=True, check=False)
        if engine == "processes" and child.returncode == 0:  # it lost some workers and finished without them
            assert contents(out) == expected
            shutil.rmtree(out)
            continue
        assert child.returncode == -signal.SIGKILL or b"killed by SIGKILL" in child.stderr
        left_behind.add(len(list(out.rglob("*.parquet"))))
    assert len(left_behind) > 1  # the kills fell at different points
    run(STEPS, inputs, out, quiet=True)
    assert contents(out) == expected
    assert not list(out.rglob("*.tmp"))


def test_finished_files_are_not_done_again(inputs, tmp_path):
    log = tmp_path / "log"
    steps = [engine_steps.Logged(str(log), fail_at="part2.jsonl")]
    with pytest.raises(StorageError, match="part2"):
        run(steps, inputs, tmp_path / "out", quiet=True)
    assert log.read_text().split() == ["part0.jsonl", "part1.jsonl", "part2.jsonl"]
    first = (tmp_path / "out" / "00000-part0.parquet").stat().st_mtime_ns
    os.environ["ENGINE_TEST_HEALED"] = "1"
    try:
        report = run(steps, inputs, tmp_path / "out", quiet=True)
        assert log.read_text().split()[3:] == ["part2.jsonl"]
        assert (tmp_path / "out" / "00000-part0.parquet").stat().st_mtime_ns == first
        again = run(steps, inputs, tmp_path / "out", quiet=True)
    finally:
        del os.environ["ENGINE_TEST_HEALED"]
    assert len(log.read_text().split()) == 4
    assert again == report  # statistics come from the records, so a run that did nothing tells the same story
    assert report.documents_in == 180


def test_a_changed_input_is_done_again_and_others_are_not(tmp_path):
    source, out = write_inputs(tmp_path / "in"), tmp_path / "out"
    run([WordCount()], source, out, quiet=True)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    (source / "part1.jsonl").write_text('{"text": "changed"}\n')
    run([WordCount()], source, out, quiet=True)
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert [name for name in after if after[name] != before[name]] == ["00001-part1.parquet"]
    assert "changed" in all_texts(out)


def test_a_changed_input_reaches_through_barriers(tmp_path):
    source, out = write_inputs(tmp_path / "in"), tmp_path / "out"
    run([ExactDedup()], source, out, quiet=True)
    (source / "part0.jsonl").write_text('{"text": "changed"}\n')
    run([ExactDedup()], source, out, quiet=True)
    run([ExactDedup()], source, tmp_path / "fresh", quiet=True)
    assert contents(out) == contents(tmp_path / "fresh")


def test_another_run_in_the_folder_is_refused(inputs, tmp_path):
    run([WordCount()], inputs, tmp_path / "out", quiet=True)
    before = contents(tmp_path / "out")
    with pytest.raises(ConfigError, match="other steps: number 1"):
        run([Length(min_words=1)], inputs, tmp_path / "out", quiet=True)
    with pytest.raises(ConfigError, match="other inputs"):
        run([WordCount()], inputs / "part0.jsonl", tmp_path / "out", quiet=True)
    with pytest.raises(ConfigError, match="other reader"):
        run([WordCount()], inputs, tmp_path / "out", read=engine_steps.other_reader, quiet=True)
    assert contents(tmp_path / "out") == before
    run([Length(min_words=1)], inputs / "part0.jsonl", tmp_path / "out", resume=False, quiet=True)
    assert [path.name for path in tmp_path.glob("out/*.parquet")] == ["00000-part0.parquet"]


def test_a_folder_with_other_files_is_refused(inputs, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    for resume in (True, False):
        with pytest.raises(ConfigError, match="no curation run"):
            run([WordCount()], inputs, tmp_path, resume=resume, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_runs_at_once_are_refused(inputs, tmp_path):
    import fcntl

    (tmp_path / ".bloomery").mkdir()
    with (tmp_path / ".bloomery" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="another run"):
            run([WordCount()], inputs, tmp_path, quiet=True)


# --------------------------------------------------------------------------------------------------------------- faults


def test_a_dying_worker_names_the_file_and_keeps_the_others(inputs, tmp_path):
    with pytest.raises(BloomeryError, match=r"part1\.jsonl: the worker process was killed by SIGKILL .* 3 times"):
        run([Deadly("part1.jsonl")], inputs, tmp_path, engine="processes", workers=1, quiet=True)
    assert (tmp_path / "00000-part0.parquet").exists()


def test_one_dead_worker_costs_nothing(inputs, expected, tmp_path, monkeypatch, caplog):
    """The worker that begins with the second file is killed in the middle of it; a new one does that file again."""
    told = []
    monkeypatch.setattr("bloomery.corpus.engine.Progress.advance", lambda self, n, **_: told.append(n))
    steps = [DeadlyOnce("part1.jsonl", str(tmp_path / "died")), *STEPS]
    report = run(steps, inputs, tmp_path / "out", engine="processes", workers=2, quiet=True)
    assert (tmp_path / "died").exists()
    assert "part1.jsonl: a worker died (exit code -9); doing it again" in caplog.text
    assert sum(told) == 180 + sum(
        s.documents_in for s in report.steps if s.name in ("ExactDedup", "Stamp", "NearDedup")
    )
    found = contents(tmp_path / "out")
    assert {name: found[name] for name in found if name.endswith("parquet")} == {
        name: expected[name] for name in expected if name.endswith("parquet")
    }


def test_an_error_in_a_worker_arrives(inputs, tmp_path):
    steps = [engine_steps.Logged(str(tmp_path / "log"), fail_at="part1.jsonl")]
    with pytest.raises(StorageError, match="part1"):
        run(steps, inputs, tmp_path / "out", engine="processes", workers=1, quiet=True)


def test_full_disk(inputs, tmp_path, monkeypatch):
    opened = []
    real = os.fsync

    def full(handle):
        opened.append(handle)
        if len(opened) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        run([WordCount()], inputs, tmp_path, quiet=True)
    monkeypatch.undo()
    assert (tmp_path / "00000-part0.parquet").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    run([WordCount()], inputs, tmp_path, quiet=True)
    assert len(list(tmp_path.glob("*.parquet"))) == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_while_writing_parquet(inputs, tmp_path, monkeypatch):
    real = os.fdopen

    def fdopen(handle, mode, **options):
        os.close(handle)
        return open("/dev/full", mode, buffering=0)

    monkeypatch.setattr(files.os, "fdopen", lambda h, m, **o: (fdopen if "b" in m else real)(h, m, **o))
    with pytest.raises(StorageError, match="disk is full"):
        run([WordCount()], inputs, tmp_path, quiet=True)


def test_what_cannot_fit_is_refused_with_numbers(inputs, tmp_path, caplog, monkeypatch):
    steps = [engine_steps.Hungry(), WordCount()]
    with pytest.raises(ConfigError, match=r"needs about 1,000,000\.\d GB of memory \(Hungry .* GB are available"):
        run(steps, inputs, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
    run(steps, inputs, tmp_path / "out", force=True, quiet=True)
    assert "Hungry over 171 documents needs 1,000,000.0 GB" in caplog.text
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 100}))
    with pytest.raises(ConfigError, match=r"GB of disk .* 0\.0 GB are free"):
        run([WordCount()], inputs, tmp_path / "disk", quiet=True)


def test_documents_that_turn_out_too_many_stop_the_run_at_the_barrier(inputs, tmp_path, monkeypatch):
    """The plan guesses from file sizes; the barrier knows. What was finished stays, and force goes on from there."""
    steps = [engine_steps.Hungry(per_document=10**12), WordCount()]
    monkeypatch.setattr("bloomery.corpus.planning.RunPlan.check", lambda self, folder: None)
    with pytest.raises(ConfigError, match=r"Hungry over 171 documents needs 171,000\.0 GB.*finished files are kept"):
        run(steps, inputs, tmp_path, quiet=True)
    assert len(list(tmp_path.rglob("*.sketches.arrow"))) == 3
    assert run(steps, inputs, tmp_path, force=True, quiet=True).documents_out == 171


def test_nothing_left_is_an_error_with_reasons(inputs, tmp_path):
    for _ in range(2):  # and it stays one when it is run again
        with pytest.raises(EmptyError, match=r"none of 180 documents.*Nothing: not wanted \(171\)"):
            run([Nothing(), ExactDedup(), WordCount()], inputs, tmp_path, quiet=True)
    assert Report.load(tmp_path / "report.json").documents_out == 0
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(EmptyError, match="inputs are empty"):
        run([WordCount()], tmp_path / "empty.jsonl", tmp_path / "out", quiet=True)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([engine_steps.AtLeast("score", 0.5)], r"step 1 \(AtLeast\) reads the column 'score'"),
        ([WordCount(), engine_steps.AtLeast("word", 0.5)], "did you mean 'words'"),
        (["Length"], "step 1 is not a Step or Barrier: 'Length'"),
    ],
)
def test_columns_are_checked_before_anything_runs(inputs, tmp_path, steps, message):
    with pytest.raises(ConfigError, match=message):
        run(steps, inputs, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()


def test_other_config_mistakes(inputs, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'processes'"):
        run([WordCount()], inputs, tmp_path, engine="process")
    with pytest.raises(ConfigError, match="workers"):
        run([WordCount()], inputs, tmp_path, engine="processes", workers=0)
    with pytest.raises(ConfigError, match="importable"):
        run([WordCount()], inputs, tmp_path, engine="processes", read=lambda path: read_documents(path), quiet=True)


def test_a_step_that_removes_rows_itself_is_caught(inputs, tmp_path):
    with pytest.raises(DataError, match=r"Clumsy got .* and returned"):
        run([Clumsy()], inputs, tmp_path, quiet=True)


def test_runs_can_be_chained(tmp_path):
    first, second, third = tmp_path / "first", tmp_path / "second", tmp_path / "third"
    lines = [{"text": "a long enough text to be kept here"}, {"text": "short"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "b.jsonl").write_text(json.dumps(lines[1]))  # nothing of it is kept
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "another text that is long enough to be kept"}))
    run([Length(min_words=3), WordCount()], sorted(tmp_path.glob("*.jsonl")), first, quiet=True)
    report = run([Select(column="words", fraction=1.0)], first, second, quiet=True)
    assert report.documents_in == 2
    assert [path.name for path in find_inputs(first)] == ["00000-a.parquet", "00001-b.parquet", "00002-c.parquet"]
    (first / "00003-d.parquet").write_bytes(b"damaged")
    report = run([Select(column="words", fraction=1.0)], first, third, quiet=True)
    assert report.documents_out == 2
    dropped = run(
        [ExactDedup(), Length(min_words=3)], [first / "dropped", tmp_path / "a.jsonl"], tmp_path / "again", quiet=True
    )
    assert dropped.documents_in == 4
    columns = pq.read_schema(next((tmp_path / "again" / "dropped").glob("*.1.parquet"))).names
    assert len(columns) == len(set(columns))


def test_output_below_the_input_is_not_read_back(tmp_path):
    source = write_inputs(tmp_path / "in", n_files=1)
    first = run([Length(min_words=3)], source, source / "out", quiet=True)
    assert run([Length(min_words=3)], source, source / "out", quiet=True).documents_in == first.documents_in
    with pytest.raises(ConfigError, match="lie in the output folder"):
        run([Length(min_words=3)], source / "out", source / "out", quiet=True)


def test_long_names_leave_room_for_suffixes(tmp_path):
    path = tmp_path / ("\N{CJK UNIFIED IDEOGRAPH-4E00}" * 80 + ".jsonl")
    path.write_text(json.dumps({"text": "some words that are kept"}))
    assert run([ExactDedup()], path, tmp_path / "out", quiet=True).documents_out == 1


def test_needs_are_estimated_and_said_before_the_run(tmp_path, caplog):
    write_inputs(tmp_path / "in")
    (tmp_path / "in" / "x.parquet").write_bytes(b"damaged")
    pq.write_table(pa.table({"text": ["some text"] * 5_000}), tmp_path / "many.parquet")
    needs = plan([ExactDedup()], tmp_path / "many.parquet")
    assert (needs.documents, needs.ram_bytes) == (5_000, 5_000 * 64)
    assert plan([Length()], tmp_path / "in").ram_bytes == 0
    assert plan([Length()], tmp_path / "in").disk_bytes == 0
    assert plan([Length()], [tmp_path / "in", tmp_path / "many.parquet"], workers=2).workers == 2
    with caplog.at_level("INFO", logger="bloomery.corpus"):
        report = run([ExactDedup()], tmp_path / "in", tmp_path / "out")
    assert "documents" in caplog.text
    assert "GB of memory" in caplog.text
    measured = plan([Length(), ExactDedup()], tmp_path / "many.parquet", like=report)
    assert [step.measured for step in measured.steps] == [True, False, True]
    share = report.steps[0].kept / report.steps[0].documents_in
    assert [step.documents for step in measured.steps] == [5_000, int(5_000 * share), int(5_000 * share)]
    rich.print(measured.table())
