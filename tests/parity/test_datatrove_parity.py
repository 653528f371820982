"""The page filters of `corpus.fineweb` against datatrove's: decisions, reasons and texts equal on every document.

Its decisions on generated documents are in datatrove_golden.json, made by datatrove_side.py. Where an interpreter has
datatrove (BLOOMERY_PEER_PYTHON, or .venv-peers as `make bench` builds it), the two also run side by side on a thousand
real and generated documents. spaCy's words need spaCy on our side as well.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bloomery.corpus.c4 import C4Quality
from bloomery.corpus.documents import from_texts, texts
from bloomery.corpus.fineweb import FineWebQuality, GopherQuality, GopherRepetition
from bloomery.corpus.steps import DROP
from bloomery.web.archive import iterate_pages
from bloomery.web.extract import full_text

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from datatrove_side import NAMES, digest, generated  # noqa: E402

ROOT = HERE.parents[1]
DATA = Path(os.environ.get("BLOOMERY_DATA", ROOT.parent / "shared" / "data"))
PEER = Path(os.environ.get("BLOOMERY_PEER_PYTHON", ROOT / ".venv-peers" / "bin" / "python"))
GOLDEN = json.loads((HERE / "datatrove_golden.json").read_text(encoding="utf-8"))
TOKENIZERS = [
    "whitespace",
    pytest.param(
        "spacy", marks=pytest.mark.skipif(importlib.util.find_spec("spacy") is None, reason="spaCy is not installed")
    ),
]

REASONS = {
    "GopherRepetition": {
        "no text": "empty",
        "repeated lines": "dup_line_frac",
        "repeated paragraphs": "dup_para_frac",
        "characters in repeated lines": "dup_line_char_frac",
        "characters in repeated paragraphs": "dup_para_char_frac",
        **{f"frequent {n}-gram": f"top_{n}_gram" for n in (2, 3, 4)},
        **{f"repeated {n}-grams": f"duplicated_{n}_n_grams" for n in range(5, 11)},
    },
    "GopherQuality": {
        "too few words": "gopher_short_doc",
        "too many words": "gopher_long_doc",
        "words too short": "gopher_below_avg_threshold",
        "words too long": "gopher_above_avg_threshold",
        "too many #": "gopher_too_many_hashes",
        "too many ellipses": "gopher_too_many_ellipsis",
        "too many bullet lines": "gopher_too_many_bullets",
        "too many lines end in an ellipsis": "gopher_too_many_end_ellipsis",
        "too few alphabetic words": "gopher_below_alpha_threshold",
        "too few stop words": "gopher_enough_stop_words",
    },
    "C4Quality": {
        "lorem ipsum": "lorem_ipsum",
        "curly bracket": "curly_bracket",
        "too few sentences": "too_few_sentences",
    },
    "FineWebQuality": {
        "no text": "empty",
        "too few terminated lines": "line_punct_ratio",
        "too many short lines": "short_line_ratio",
        "characters in repeated lines": "char_dup_ratio",
        "too few words per line": "list_ratio",
    },
}
REASONS["C4QualityNoPunct"] = REASONS["C4Quality"]


def ours(name: str, tokenizer: str, documents: list[str]) -> list[tuple[str, str]]:
    step = {
        "GopherRepetition": GopherRepetition(tokenizer=tokenizer),
        "GopherQuality": GopherQuality(tokenizer=tokenizer),
        "C4Quality": C4Quality(tokenizer=tokenizer, strict_reference=True),
        "C4QualityNoPunct": C4Quality(terminal_punctuation=False, tokenizer=tokenizer, strict_reference=True),
        "FineWebQuality": FineWebQuality(tokenizer=tokenizer, strict_reference=True),
    }[name]
    batch = step(from_texts(documents))
    dropped = batch.column(DROP).to_pylist() if DROP in batch.schema.names else [None] * len(documents)
    reasons = ["" if reason is None else REASONS[name][reason] for reason in dropped]
    return list(zip(reasons, texts(batch).to_pylist(), strict=True))


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("name", NAMES)
def test_decisions_on_generated_documents_are_the_golden_ones(name, tokenizer):
    expected = GOLDEN[f"{tokenizer}/{name}"]
    assert digest(ours(name, tokenizer, generated())) == expected


def test_the_golden_documents_meet_nearly_every_rule():
    met = {decision for key, values in GOLDEN.items() if key != "versions" for decision in values}
    known = {reason for reasons in REASONS.values() for reason in reasons.values()}
    assert known - met == {"gopher_long_doc"}  # a hundred thousand words


def thousand() -> list[str]:
    """Texts of C4, articles, all visible text of pages and encyclopedia articles where the data are there, up to 800;
    the rest generated."""
    found: list[str] = []
    for name in ("web_text/c4_demo.jsonl.gz", "web_pages/articles_gold.jsonl.gz"):
        if (DATA / name).exists():
            with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
                found += [json.loads(line)["text"] for line in file]
    for path in sorted(DATA.glob("web_pages/*.warc.gz")):
        found += [full_text(page.html) for page in iterate_pages(path)]
    if (DATA / "wikipedia/articles_kilt.jsonl.gz").exists():
        with gzip.open(DATA / "wikipedia/articles_kilt.jsonl.gz", "rt", encoding="utf-8") as file:
            found += ["".join(json.loads(line)["text"]) for line in file]
    found = found[:800]
    return found + generated(1_000 - len(found), seed=1)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_thousand_documents_side_by_side(tokenizer):
    if not PEER.exists():
        pytest.skip(f"no interpreter with datatrove at {PEER}: `make bench` builds one")
    documents = thousand()
    command = [str(PEER), str(HERE / "datatrove_side.py"), tokenizer]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    answer = subprocess.run(
        command, input=json.dumps(documents), capture_output=True, text=True, check=False, env=environment
    )
    if answer.returncode:
        pytest.skip(f"datatrove does not run there: {answer.stderr.strip().splitlines()[-1]}")
    theirs = json.loads(answer.stdout)
    for name in NAMES:
        mine = ours(name, tokenizer, documents)
        assert [list(decision) for decision in mine] == theirs[name], name
        print(f"{name}: {len(documents)} equal, {sum(not reason for reason, _ in mine)} kept", file=sys.stderr)
