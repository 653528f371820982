"""`bloomery quality train`, and its classifier in `bloomery curate`."""

from __future__ import annotations

import json

SENTENCE = "the quick brown fox and a lazy dog went over every hill to see what there was for them to find"
GOOD = [f"{SENTENCE}. Number {i} explains with care why it is so." for i in range(60)]
BAD = [f"{SENTENCE}. Buy {i} now, click here, best price ever." for i in range(60)]


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_train_and_curate_with_it(ok, bloomery, tmp_path):
    good = write(tmp_path / "good.jsonl", GOOD)
    (tmp_path / "bad").mkdir()
    for number, text in enumerate(BAD):
        (tmp_path / "bad" / f"{number}.txt").write_text(text)
    small = ["--dim", 8, "--bucket", 500, "--lr", 0.5, "--epoch", 20, "--held-out", 0.2, "--quiet"]
    facts = ok("quality", "train", good, tmp_path / "bad", "-o", "model.bin", *small)
    assert facts["file"] == "model.bin"
    assert facts["accuracy"] == facts["auc"] == 1.0
    assert facts["texts __label__hq"] + facts["texts __label__cc"] + facts["held_out"] == 120
    mixed = write(tmp_path / "mixed.jsonl", GOOD[:20] + BAD[:60])
    steps = tmp_path / "steps.yaml"
    steps.write_text("steps:\n  - Score: {model: model.bin}\n  - Select: {column: score_fasttext, fraction: 0.25}\n")
    report = ok("curate", mixed, "out", "--steps", steps, "--format", "jsonl", "--quiet")
    assert report["documents_out"] == 20
    left = (tmp_path / "out" / "00000-mixed.jsonl").read_text()
    assert "Buy" not in left
    code, out, _ = bloomery("quality", "train", good, tmp_path / "bad", *small)
    assert code == 0
    assert "accuracy: 1.0" in out
    assert (tmp_path / "classifier.bin").exists()


def test_mistakes_are_one_line(bloomery, tmp_path):
    good = write(tmp_path / "good.jsonl", GOOD[:5])
    for arguments, message in (
        ((), "which command?"),
        (("trian",), "did you mean 'train'?"),
        (("train", good, good, "--out", "model"), ".bin"),
        (("train", good, good, "--held-out", "0", "--quiet"), "5 texts of __label__hq to train on"),
        (("train", good, tmp_path / "nothing"), "nothing"),
        (("train", good, good, "--dim", "0"), "dim = 0"),
    ):
        code, out, err = bloomery("quality", *arguments)
        assert (code, out) == (2, "")
        assert message in err
        assert len(err.splitlines()) == 1
