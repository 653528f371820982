from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from bloomery.cli.curate import find_step
from bloomery.corpus.presets import INTERLEAVED, PRESETS, preset

SENTENCE = "the quick brown fox and a lazy dog went over every hill to see what there was for them to find"
WORDS = SENTENCE.split()
LONG = [" ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(120)) + f" ends with {i}." for i in range(8)]


@pytest.fixture
def documents():
    """Eight documents, one of them twice, and a short one, in two files."""
    Path("in").mkdir()
    texts = [*LONG, LONG[0], "short"]
    for name, part in (("a", texts[:5]), ("b", texts[5:])):
        lines = [json.dumps({"text": text, "url": f"http://example.org/{name}/{i}"}) for i, text in enumerate(part)]
        Path(f"in/{name}.jsonl").write_text("\n".join(lines) + "\n")
    return "in"


def test_steps_by_name_and_the_survival_table(documents, ok, bloomery):
    report = ok("curate", documents, "out", "--use", "Length", "ExactDedup", "--engine", "inline", "--quiet")
    assert (report["documents_in"], report["documents_out"]) == (10, 8)
    assert [step["name"] for step in report["steps"]][-2:] == ["Length", "ExactDedup"]
    assert len(list(Path("out").glob("*.parquet"))) == 2
    _, out, _ = bloomery("curate", documents, "out", "--use", "Length", "ExactDedup", "--engine", "inline", "--quiet")
    assert "8 of 10 documents kept" in out


def test_steps_from_a_file_and_both_engines_agree(documents, ok):
    Path("steps.yaml").write_text("steps:\n  - Length\n  - ExactDedup\n  - Split: {validation: 0.5, seed: 3}\n")
    for engine in ("inline", "processes"):
        ok("curate", documents, engine, "--steps", "steps.yaml", "--engine", engine, "--workers", 2, "--quiet")
    for name in sorted(path.name for path in Path("inline").glob("*.parquet")):
        assert (Path("inline") / name).read_bytes() == (Path("processes") / name).read_bytes()


def test_score_and_select_with_a_trained_scorer(documents, ok):
    from bloomery.corpus import LinearScorer

    LinearScorer.train(LONG * 3, [text.upper() for text in LONG] * 3, seed=0).save("scorer")
    Path("steps.yaml").write_text(
        "steps:\n  - Score: {model: scorer}\n  - Select: {column: score_quality, fraction: 0.5}\n"
    )
    report = ok("curate", documents, "out", "--steps", "steps.yaml", "--engine", "inline", "--quiet")
    assert report["documents_out"] == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: [Lenght]", "steps.yaml: steps[0]: unknown step 'Lenght' (did you mean 'Length'"),
        ("steps: [{Length: {minimum: 3}}]", "unknown field 'minimum' of Length"),
        ("steps: [{NearDedup: {threshold: high}}]", "threshold: expected float, got 'high'"),
        ("steps: [3]", "expected a name or name: {field: value}, got 3"),
        ("steps: [{Score: {}}]", "Score takes model: PATH"),
        ("steps: [{Score: {model: nowhere.bin}}]", "nowhere.bin"),
        ("steps: {Length: {}}", "needs a list under `steps:`"),
        ("step: [Length]", "unknown field 'step' (did you mean 'steps'?)"),
        ("steps: [Length", "not valid YAML"),
    ],
)
def test_a_bad_steps_file_gives_one_line(documents, text, message, refused):
    Path("steps.yaml").write_text(text)
    assert message in refused("curate", documents, "out", "--steps", "steps.yaml", "--engine", "inline")
    assert not Path("out").exists()


def test_bad_arguments_give_one_line(documents, refused):
    assert "needs inputs and an output folder" in refused("curate", documents)
    assert "unknown step 'Lenght'" in refused("curate", documents, "out", "--use", "Lenght")
    Path("steps.yaml").write_text("steps: [Length]")
    assert "exclude each other" in refused("curate", documents, "out", "--steps", "steps.yaml", "--use", "Length")
    assert "nowhere" in refused("curate", "nowhere", "out", "--use", "Length")


def test_an_empty_corpus_says_what_removed_it(documents, refused):
    Path("in/a.jsonl").write_text('{"text": "short"}\n{"text": broken\n')
    Path("in/b.jsonl").write_text('{"text": "brief"}\n')
    message = refused("curate", documents, "out", "--use", "Length", "--engine", "inline", "--quiet")
    assert "Length" in message


def test_a_pipeline_by_name_and_what_it_would_take(documents, ok, bloomery, refused):
    plan = ok("curate", documents, "out", "--recipe", "refinedweb", "--plan")
    assert plan["documents"] >= 1
    assert not Path("out").exists()
    code, _, error = bloomery("curate", documents, "out", "--recipe", "refinedweb", "--engine", "inline", "--quiet")
    assert code in (0, 2), error  # these texts repeat themselves, and may all be dropped for it
    assert "exclude each other" in refused("curate", documents, "out", "--recipe", "dclm", "--use", "Length")
    assert "did you mean 'refinedweb'" in refused("curate", documents, "out2", "--recipe", "refinedwb")


def test_a_configuration_of_dclm_and_json_lines_out(documents, ok):
    Path("dclm.yaml").write_text(
        "- source: cc\n  steps:\n    - func: page_length_filter\n      length_type: word\n      min_length: 50\n"
        "      ignore_punctuation: True\n"
    )
    report = ok(
        "curate", documents, "out", "--steps", "dclm.yaml", "--engine", "inline", "--format", "jsonl", "--quiet"
    )
    assert report["documents_out"] == 9
    assert sum(len(path.read_text().splitlines()) for path in Path("out").glob("*.jsonl")) == 9


def test_addresses_are_read_and_written(documents, ok, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    here, there = f"local://{tmp_path}/in", f"local://{tmp_path}/out"
    report = ok("curate", here, there, "--use", "Length", "ExactDedup", "--workers", 2, "--quiet")
    assert (report["files"], report["documents_in"], report["documents_out"]) == (2, 10, 8)
    ok("curate", "in", "local", "--use", "Length", "ExactDedup", "--engine", "inline", "--quiet")
    for path in Path("local").glob("*.parquet"):
        assert path.read_bytes() == (Path("out") / path.name).read_bytes()


def prose(sentences: int) -> str:
    """Lines of two sentences each, of which no two are alike."""
    rng = random.Random(0)
    made = [" ".join(["The", *rng.choices(WORDS, k=9), f"{rng.random():.9f}", "end."]) for _ in range(sentences)]
    return "\n".join(f"{first} {second}" for first, second in zip(made[::2], made[1::2], strict=True))


@pytest.mark.parametrize("recipe", ["gopher", "c4", "fineweb"])
def test_recipes_strict_or_not(recipe, ok, refused):
    Path("in.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in (prose(20), prose(20)[:40])) + "\n")
    arguments = ["curate", "in.jsonl", "--recipe", recipe, "--engine", "inline", "--quiet"]
    plain = ok(*arguments[:2], "plain", *arguments[2:])
    strict = ok(*arguments[:2], "strict", *arguments[2:], "--strict-reference")
    assert plain["documents_out"] == strict["documents_out"] == 1
    assert ("C4Quality" in [step["name"] for step in strict["steps"]]) == (recipe != "gopher")
    assert ("GopherQuality" in [step["name"] for step in strict["steps"]]) == (recipe != "c4")
    assert "--recipe" in refused("curate", "in.jsonl", "out", "--strict-reference")


def test_a_plan_from_an_earlier_run(documents, ok, refused):
    use = ["--use", "Length", "ExactDedup"]
    ok("curate", documents, "sample", *use, "--engine", "inline", "--quiet")
    guess = {step["name"]: step for step in ok("curate", documents, "out", *use, "--plan")["steps"]}
    plan = {step["name"]: step for step in ok("curate", documents, "out", *use, "--plan", "--like", "sample")["steps"]}
    assert not guess["Length"]["measured"]
    assert plan["Length"]["measured"]
    assert plan["ExactDedup"]["documents"] < plan["Length"]["documents"] or plan["Length"]["documents"] < 10
    assert "--plan" in refused("curate", documents, "out", *use, "--like", "sample")
    assert "no report.json" in refused("curate", documents, "out", *use, "--plan", "--like", documents)


def test_every_step_of_a_recipe_has_a_name_for_files():
    for recipe in PRESETS:
        strict = [] if recipe in INTERLEAVED else preset(recipe, strict_reference=True)
        for step in [*preset(recipe), *strict]:
            assert find_step(step.name) is type(getattr(step, "step", step))  # some are bound to kinds of documents
    assert find_step("Report") is None
    assert find_step("Step") is None
