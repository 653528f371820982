"""The main job on what a user brings: JSON lines, Parquet, WARC, a site; and what it says to input it cannot use."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bloomery import lab
from bloomery.cli.main import main
from bloomery.core.errors import ConfigError, EmptyError, WebError

SMALL: dict[str, Any] = {"vocab_size": 300, "tokens": 600, "seq_len": 32}
VOCABULARY = """
river village teacher garden machine letter window forest captain market bridge harbour painter kitchen winter journey
followed carried watched repaired described remembered crossed painted opened discovered visited measured collected
quiet broken distant careful golden narrow famous heavy patient curious ancient simple gentle hidden modern empty
"""
NOUNS, VERBS, WORDS = (line.split() for line in VOCABULARY.strip().splitlines())
PATTERNS = (
    "The {a} {x} {v} the {b} {y} and {w} it with the {z}.",
    "When a {b} {x} {v} that {a} {y}, we have {w} every {z} of the town.",
    "It was to be the {a} {x} that {v} them, but this {y} {w} the {b} {z} with care.",
    "Nobody {v} a {x} of such {a} manners before the {y} in the {b} {z} {w}.",
)


def story(number: int) -> str:
    """A few sentences of plain English."""
    chance = random.Random(number)
    sentences = []
    for _ in range(10):
        (a, b), (x, y, z), (v, w) = (chance.sample(pool, n) for pool, n in ((WORDS, 2), (NOUNS, 3), (VERBS, 2)))
        sentences.append(chance.choice(PATTERNS).format(a=a, b=b, x=x, y=y, z=z, v=v, w=w))
    return f"Story number {number}. " + " ".join(sentences)


GOOD = [story(number) for number in range(150)]
JUNK = [f"buy now {number}" for number in range(30)] + [f"{{ 0x{number:x} ; " * 90 for number in range(10)]


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "curated" / "report.json").read_text())
    return report


def check(folder: Path, result: Any) -> None:
    """A run on somebody's own input: one claim, no questions, a model that loads."""
    from bloomery.models import load_pretrained

    (claim,) = result.claims
    assert claim.names == ("curated", "raw")
    assert "not trained on" in claim.note
    assert not (folder / "tune").exists()
    assert load_pretrained(folder / "model").config.vocab_size == SMALL["vocab_size"]
    assert (folder / "report.html").stat().st_size > 10_000


def test_json_lines_with_junk_and_a_broken_line(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in [*GOOD, GOOD[3], *JUNK]]
    lines.insert(7, '{"text": "cut of')
    (tmp_path / "mine.jsonl").write_text("\n".join(lines) + "\n")
    result = lab.run("end_to_end", "smoke", tmp_path / "run", quiet=True, jsonl=[tmp_path / "mine.jsonl"], **SMALL)
    check(tmp_path / "run", result)
    report = report_of(tmp_path / "run")
    assert report["documents_in"] == 192
    assert report["steps"][0]["errors"] == {"error: not valid JSON": 1}
    assert 100 < report["documents_out"] <= 150  # the repeated one is gone, and so is all junk
    assert [step["name"] for step in report["steps"] if step["name"] in ("Score", "Select")] == []


def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": GOOD[:75]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": GOOD[75:], "source": ["b"] * 75}), tmp_path / "b.parquet")
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    result = lab.run("end_to_end", "smoke", tmp_path / "run", quiet=True, parquet=files, **SMALL)
    check(tmp_path / "run", result)
    assert report_of(tmp_path / "run")["documents_in"] == 150


def test_warc_of_an_earlier_crawl(smoke: Path, tmp_path: Path) -> None:
    archives = sorted((smoke / "crawl" / "pages").glob("*.warc.gz"))
    result = lab.run("end_to_end", "smoke", tmp_path / "run", quiet=True, warc=archives[:1], **SMALL)
    check(tmp_path / "run", result)
    filters = ("read", "Language", "Length", "Symbols", "Repetition")
    mine, whole = ({step["name"]: step for step in report_of(run)["steps"]} for run in (tmp_path / "run", smoke))
    assert 0 < mine["read"]["kept"] < whole["read"]["kept"] == 600
    assert all(0 < mine[name]["kept"] <= whole[name]["kept"] for name in filters)


# --- a site ----------------------------------------------------------------------------------------------------------


class Site(BaseHTTPRequestHandler):
    """A page per story, each linking to the next two."""

    def do_GET(self) -> None:
        number = int(self.path.strip("/") or 0) if self.path != "/robots.txt" else -1
        links = "".join(f'<a href="/{to}">{to}</a> ' for to in (2 * number + 1, 2 * number + 2) if to < len(GOOD))
        body = f"<html><body><main><p>{GOOD[number]}</p></main><nav>{links}</nav></body></html>".encode()
        self.send_response(404 if number < 0 else 200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_a_site(site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bloomery.web

    here = partial(bloomery.web.CrawlConfig, allow_private=True, per_host_delay=0.0)  # the site is on this machine
    monkeypatch.setattr(bloomery.web, "CrawlConfig", here)
    result = lab.run("end_to_end", "smoke", tmp_path / "run", quiet=True, seeds=[site], pages=120, **SMALL)
    check(tmp_path / "run", result)
    assert report_of(tmp_path / "run")["documents_in"] == 120


def test_a_site_on_this_machine_is_refused(site: str, tmp_path: Path) -> None:
    with pytest.raises(WebError, match=r"no page could be crawled: .*loopback address"):
        lab.run("end_to_end", "smoke", tmp_path / "run", quiet=True, seeds=[site])


# --- what cannot be used ---------------------------------------------------------------------------------------------


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """`bloomery run end_to_end` on bad input: exit code 2 and, after lines of progress, one line that says why."""

    def run(*argv: object) -> str:
        capsys.readouterr()
        preset = [] if "--preset" in argv else ["--preset", "smoke"]
        command = ["run", "end_to_end", *preset, "--out", tmp_path / "run", "--quiet", *argv]
        assert main([str(word) for word in command]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        (line,) = [line for line in shown.err.splitlines() if line.startswith("bloomery: ")]
        assert shown.err.endswith(line + "\n")
        return line

    return run


def test_two_kinds_of_input_at_once(tmp_path: Path, refused: Callable[..., str]) -> None:
    with pytest.raises(ConfigError, match="seeds and jsonl exclude each other"):
        lab.run("end_to_end", "smoke", tmp_path, seeds=["http://example.org/"], jsonl=["x.jsonl"])
    assert "warc and parquet exclude each other" in refused("--warc", "a.warc.gz", "--parquet", "b.parquet")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--keep", 1.5], "keep is 1.5 (a share above 0 and up to 1)"),
        (["--tokens", 0], "tokens is 0 (1 or more)"),
        (["--tokns", 9], "unknown option '--tokns': did you mean '--tokens'"),
        (["--preset", "smoek"], "unknown preset 'smoek' of end_to_end (did you mean 'smoke'?)"),
    ],
)
def test_values_out_of_range(tmp_path: Path, refused: Callable[..., str], argv: list[Any], message: str) -> None:
    assert message in refused(*argv)
    assert not (tmp_path / "run").exists()


def test_nothing_but_junk(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "junk.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in JUNK))
    line = refused("--jsonl", tmp_path / "junk.jsonl")
    assert "none of 40 documents" in line
    assert "Language" in line  # names what removed them
    assert not (tmp_path / "run" / "claims.json").exists()
    with pytest.raises(EmptyError, match="none of 40 documents"):
        lab.run("end_to_end", "smoke", tmp_path / "again", quiet=True, jsonl=[tmp_path / "junk.jsonl"])


def test_a_missing_file_and_one_that_is_no_archive(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "nowhere.jsonl: no such file" in refused("--jsonl", tmp_path / "nowhere.jsonl")
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "bad.warc.gz").write_bytes(b"this is no archive " * 100)
    assert "none of 1 documents was kept: read: error: unreadable file (1)" in refused(
        "--warc", tmp_path / "bad.warc.gz"
    )


def test_a_run_of_another_system(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("recipe: flextok\npreset: smoke\n")
    assert "holds a run of 'flextok', not of 'end_to_end'" in refused()
    assert [path.name for path in (tmp_path / "run").iterdir() if path.name != ".lock"] == ["config.yaml"]
