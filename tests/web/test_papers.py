"""PDF and LaTeX through the readers of a curation run, and what becomes of those that are refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bloomery import web
from bloomery.cli.curate import main
from bloomery.core.errors import DataError
from bloomery.corpus.documents import texts
from bloomery.corpus.interleaved import parts_of
from bloomery.corpus.readers import find_inputs, read_documents
from bloomery.corpus.steps import DROP
from bloomery.worlds.pdf_pages import Sheet, write_pdf

pytest.importorskip("pypdfium2", reason="needs the extra `interleave`")

PAPER = "\\documentclass{a}\\begin{document}Words of a paper.\\input{part}\\includegraphics{plot}\\end{document}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sheet = Sheet()
    sheet.line(60, 100, "Words of a page of a file.")
    (tmp_path / "page.pdf").write_bytes(write_pdf([sheet]))
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4")
    paper = tmp_path / "paper"
    paper.mkdir()
    (paper / "main.tex").write_text(PAPER)
    (paper / "part.tex").write_text("Words of a part.")
    (paper / "plot.pdf").write_bytes(write_pdf([sheet]))
    return tmp_path


def test_a_folder_of_papers(folder: Path) -> None:
    inputs = find_inputs(folder)
    assert [Path(str(path)).name for path in inputs] == ["broken.pdf", "page.pdf", "main.tex"]
    broken, page, paper = (next(iter(web.read_documents(path))) for path in inputs)
    assert broken.column(DROP).to_pylist() == ["error: PDF is damaged, or is none"]
    assert texts(page).to_pylist() == ["Words of a page of a file."]
    (parts,) = parts_of(paper)
    assert [part.text or part.ref for part in parts] == ["Words of a paper.Words of a part.", "plot.pdf"]
    assert parts[1].image.startswith(b"\x89PNG")
    assert len({batch.schema for batch in (broken, page, paper)}) == 1
    with pytest.raises(DataError, match=r"web\.read_documents"):
        read_documents(folder / "page.pdf")


def test_a_run_over_papers(folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main([str(folder / "page.pdf"), str(folder / "broken.pdf"), str(folder / "paper" / "main.tex"), str(out),
                 "--use", "ExactDedup", "--engine", "inline", "--quiet"]) == 0  # fmt: skip
    rows = [row for path in sorted(out.glob("0*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert [[part["kind"] for part in row["parts"]] for row in rows] == [["text"], ["text", "image"]]
    dropped = [row for path in (out / "dropped").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert [row["reason"] for row in dropped] == ["error: PDF is damaged, or is none"]
