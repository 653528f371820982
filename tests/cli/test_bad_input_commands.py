"""Bad input given to the commands: exit code, nothing on standard output, one line on standard error."""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import threading
from pathlib import Path

import pytest
import yaml

TEXTS = [f"The function join number {i} returns a path of {i * 7 % 13} parts. It raises nothing." for i in range(120)]
PROSE = "The quick brown fox and a lazy dog went over every hill to see what there was for them to find. "


@pytest.fixture
def failed(bloomery):
    """Run a command that must fail with exit code 1: the world is at fault, not the input."""

    def run(*argv):
        code, out, err = bloomery(*argv)
        assert (code, out) == (1, "")
        last = err.splitlines()[-1]
        assert last.startswith("bloomery: ")
        assert "unexpected" not in last
        return last

    return run


# --- crawl -----------------------------------------------------------------------------------------------------------


def test_an_unreachable_seed(failed):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/"
    line = failed("crawl", url, "--out", "pages", "--allow-private", "--retries", 0, "--quiet")
    assert url in line
    assert "cannot connect" in line


def test_a_site_that_robots_txt_forbids(failed):
    class Closed(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = b"User-agent: *\nDisallow: /\n"
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Closed)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/"
        line = failed("crawl", url, "--out", "pages", "--allow-private", "--quiet")
    finally:
        server.shutdown()
        server.server_close()
    assert "robots.txt forbids it" in line


# --- curate ----------------------------------------------------------------------------------------------------------


def test_a_truncated_archive_gives_its_complete_records(data_root, ok):
    archive = data_root / "warc_files" / "IAH-20080430204825-00000-blackbook-truncated.warc.gz"
    if not archive.exists():
        pytest.skip(f"no {archive}")
    whole = archive.read_bytes()
    Path("cut.warc.gz").write_bytes(whole[: len(whole) * 2 // 3])
    first, read = (
        ok("curate", file, out, "--use", "ExactDedup", "--engine", "inline", "--quiet")["steps"][0]
        for file, out in ((archive, "whole"), ("cut.warc.gz", "out"))
    )
    assert 0 < read["kept"] <= first["kept"]
    assert (sum(first["errors"].values()), sum(read["errors"].values())) == (0, 1)


def test_bad_lines_are_counted_and_the_others_kept(ok):
    lines = [json.dumps({"text": PROSE * 9 + str(i)}).encode() for i in range(5)]
    lines[2:2] = [b'{"text": "cut of', b'{"text": "\xff\xfe"}', b"[]"]
    Path("in.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    report = ok("curate", "in.jsonl", "out", "--use", "Length", "--engine", "inline", "--quiet")
    assert (report["documents_in"], report["documents_out"]) == (8, 5)
    assert sum(report["steps"][0]["errors"].values()) == 3


# --- run -------------------------------------------------------------------------------------------------------------


def test_the_folder_of_another_system(toy, ok, refused):
    ok("run", toy, "--preset", "smoke", "--out", "mine", "--quiet")
    before = Path("mine/claims.json").read_text()
    other = toy.with_name("other.py")
    shutil.copy(toy, other)
    assert "mine: holds a run of 'toy', not of 'other'" in refused("run", other, "--preset", "smoke", "--out", "mine")
    assert "is for recipe 'toy', not 'other'" in refused("run", other, "--resume", "mine")
    assert Path("mine/claims.json").read_text() == before


# --- train and generate: vocabularies that do not fit ----------------------------------------------------------------


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """Packs of a small and of a large vocabulary, and a model of the small one."""
    from bloomery.corpus import pack, tokenizer
    from bloomery.models import Decoder, preset, save_pretrained

    folder = tmp_path_factory.mktemp("workshop")
    for name, size in (("small", 270), ("large", 300)):
        words = tokenizer.train(TEXTS, size)
        tokenizer.save(words, folder / f"{name}-words")
        pack(TEXTS, words, folder / name, quiet=True)
        if name == "small":
            model = Decoder(preset("llama-tiny", n_layers=1, dim=32, ffn_dim=64, vocab_size=270))
            save_pretrained(model, folder / "model", tokenizer=words)
    return folder


@pytest.fixture
def job(workshop):
    def write(**changes):
        values = {
            "model": {"preset": "llama-tiny", "n_layers": 1, "dim": 32, "ffn_dim": 64},
            "data": str(workshop / "small"),
            "out": "out",
            "device": "cpu",
            "train": {"seq_len": 32, "batch_size": 4, "phases": [{"tokens": 256, "lr": 0.01}]},
        }
        Path("job.yaml").write_text(yaml.safe_dump(values | changes))
        return "job.yaml"

    return write


def test_a_pack_with_more_tokens_than_the_model_folder_knows(workshop, job, refused):
    line = refused("train", job(model=str(workshop / "model"), data=str(workshop / "large")), "--quiet")
    assert f"{workshop / 'model'}: the model knows 270 tokens, the data has 300" in line
    assert "pack the data with the model's tokenizer" in line
    assert not Path("out").exists()


def test_packs_of_different_tokenizers(workshop, job, refused):
    large, small = str(workshop / "large"), str(workshop / "small")
    line = refused("train", job(validation=large), "--quiet")
    assert f"{large}: this pack was made with another tokenizer than {small}" in line
    line = refused("train", job(data={"a": large, "b": small}, weights={"a": 1.0, "b": 1.0}), "--quiet")
    assert f"{small}: this pack was made with another tokenizer than {large}" in line
    line = refused("train", job(tokenizer=str(workshop / "large-words")), "--quiet")
    assert "made with another tokenizer" in line
    assert not Path("out").exists()


def test_a_model_folder_whose_tokenizer_is_too_large(workshop, refused, tmp_path):
    shutil.copytree(workshop / "model", tmp_path / "model")
    shutil.copy(workshop / "large-words" / "tokenizer.json", tmp_path / "model" / "tokenizer.json")
    for command in (("generate", "model", "hello"), ("convert", "model", "out")):
        line = refused(*command)
        assert "token ids up to 299, the embedding only 270 rows" in line


def test_a_model_folder_with_missing_extra_and_misshapen_tensors(workshop, refused, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(workshop / "model", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    del weights["model.norm.weight"]
    weights["model.extra"] = torch.zeros(2)
    weights["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 3)
    save_file(weights, file, metadata={"format": "pt"})
    line = refused("generate", "model", "hello")
    for part in ("1 missing: model.norm.weight", "1 unexpected: model.extra", "up_proj.weight is [3, 3] instead of"):
        assert part in line
