from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloomery.core.errors import ConfigError
from bloomery.lab import Claim, Recipe, Run, load, run
from bloomery.lab.folder import duration
from bloomery.lab.launch import shown


def calls():
    names = Path("calls.txt").read_text().split()
    Path("calls.txt").unlink()
    return names


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def open_run(tmp_path):
    """Open the folder `run` with a recipe that has no fields."""

    def opened(**options):
        return Run(tmp_path / "run", Recipe(), quiet=True, **options)

    return opened


def test_a_run_leaves_everything(recipe_file):
    result = run(recipe_file, preset="smoke", quiet=True, scale=1.0)
    assert result.passed
    assert result.folder.parent == Path("runs/toy")
    names = {path.name for path in result.folder.iterdir()}
    assert names >= {"config.yaml", "env.json", "metrics.jsonl", "claims.json", "report.html", "stages.json", "train"}
    config = yaml.safe_load((result.folder / "config.yaml").read_text())
    assert config == {
        "recipe": "toy",
        "preset": "smoke",
        "seed": 0,
        "pages": 3,
        "scale": 1.0,
        "seeds": [0, 1],
        "optimiser": {"lr": 0.5, "betas": [0.9, 0.95]},
    }
    claims = json.loads((result.folder / "claims.json").read_text())
    assert claims["passed"] is True
    assert [Claim.from_dict(c) for c in claims["claims"]] == result.claims
    assert [line["step"] for line in metrics(result.folder) if line["stage"] == "train"] == list(range(10))
    environment = json.loads((result.folder / "env.json").read_text())
    assert environment["packages"]["torch"] == environment["torch"]
    assert calls() == ["crawl", "train", "measure"]


def test_no_secret_of_the_environment_is_recorded(recipe_file, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "hunter2-secret")
    folder = run(recipe_file, preset="smoke", quiet=True).folder
    for file in folder.rglob("*"):
        if file.is_file():
            assert "hunter2-secret" not in file.read_text(errors="replace")


def test_the_config_of_a_run_is_an_input_file(recipe_file):
    first = run(recipe_file, preset="smoke", quiet=True, seeds=[3, 4])
    again = run(recipe_file, quiet=True, config=first.folder / "config.yaml")
    assert (again.folder / "config.yaml").read_text() == (first.folder / "config.yaml").read_text()
    assert again.folder != first.folder
    assert again.claims == first.claims


def test_same_folder_same_config_does_nothing_twice(recipe_file, tmp_path):
    first = run(recipe_file, out=tmp_path / "out", quiet=True)
    assert calls() == ["crawl", "train", "measure"]
    before = (first.folder / "metrics.jsonl").read_text()
    again = run(recipe_file, out=tmp_path / "out", quiet=True)
    assert not Path("calls.txt").exists()
    assert again.claims == first.claims
    assert (first.folder / "metrics.jsonl").read_text() == before


def test_kill_and_run_again_repeats_only_what_was_not_done(recipe_file, tmp_path):
    command = [sys.executable, "-c", f"from bloomery import lab; lab.run({str(recipe_file)!r}, out='out', quiet=True)"]
    Path("die").touch()
    killed = subprocess.run(command, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert calls() == ["crawl", "train"]
    assert [r["state"] for r in json.loads(Path("out/stages.json").read_text())] == ["done", "running"]
    assert not Path("out/claims.json").exists()
    with Path("out/metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "sta')  # the line that was being written

    Path("die").unlink()
    result = run(recipe_file, out="out", quiet=True)
    assert calls() == ["train", "measure"]
    whole = run(recipe_file, out="whole", quiet=True)
    assert result.claims == whole.claims
    steps = [(line["stage"], line["step"], line.get("loss")) for line in metrics(result.folder)]
    assert steps == [(line["stage"], line["step"], line.get("loss")) for line in metrics(whole.folder)]
    record = json.loads((result.folder / "stages.json").read_text())[1]
    assert (record["attempts"], record["result"]) == (2, 6)  # the stage found what it had written up to step 5
    assert "taken up again" in (result.folder / "report.html").read_text()


def test_changed_fields_rerun_the_stages_they_touch_and_all_after(recipe_file, tmp_path):
    out = tmp_path / "out"
    run(recipe_file, out=out, quiet=True)
    calls()
    with pytest.raises(ConfigError, match=r"another configuration: scale is 2\.0 there, 3\.0 here"):
        run(recipe_file, out=out, quiet=True, scale=3.0)
    result = run(recipe_file, resume=out, quiet=True, scale=3.0)
    assert calls() == ["measure"]
    assert yaml.safe_load((out / "config.yaml").read_text())["scale"] == 3.0
    assert result.claims[0].ours[0] == pytest.approx(0.7)

    (out / "train" / "leftover").touch()
    run(recipe_file, resume=out, quiet=True, optimiser={"lr": 0.7})
    assert calls() == ["train", "measure"]  # measure's own inputs are the same, but train came before it
    assert not (out / "train" / "leftover").exists()
    assert [line["step"] for line in metrics(out) if line["stage"] == "train"] == list(range(10))


def test_resume_latest_takes_over_the_values(recipe_file):
    first = run(recipe_file, preset="smoke", quiet=True, pages=7)
    calls()
    again = run(recipe_file, resume="latest", quiet=True)
    assert again.folder == first.folder
    assert not Path("calls.txt").exists()


def test_a_stage_that_fails_is_tried_again(open_run):
    def explode():
        raise OSError("no")

    with open_run() as current, pytest.raises(OSError, match="no"):
        current.stage("work")(explode)
    with open_run() as current:
        assert current.stage("work")(lambda: 5) == 5
        assert current.stages[0].state == "done"
    with open_run() as current:
        assert current.stage("work")(explode) == 5


def test_results_look_the_same_fresh_and_resumed(open_run):
    for _ in range(2):
        with open_run() as current:
            assert current.stage("work")(lambda: {"path": Path("a/b"), "pair": (1, 2), 3: None}) == {
                "path": "a/b",
                "pair": [1, 2],
                "3": None,
            }


def test_a_stage_done_again_takes_all_later_ones_with_it(open_run):
    def attempt(x, broken=False):
        done = []

        def first():
            done.append("first")
            if broken:
                raise OSError("disk on fire")

        with open_run() as current:
            current.stage("first", x=x)(first)
            current.stage("second", y=0)(lambda: done.append("second"))
        return done

    assert attempt(1) == ["first", "second"]
    assert attempt(2) == ["first", "second"]
    assert attempt(2) == []
    with pytest.raises(OSError, match="disk on fire"):
        attempt(3, broken=True)
    assert attempt(2) == ["first", "second"]  # second's record still fits, but it came from a first that is gone


def test_scalars_of_numpy_are_results_too(open_run):
    with open_run() as current:
        assert current.stage("n")(lambda: [np.int64(3), np.float32(0.5)]) == [3, 0.5]
        current.table("t", ["n"], [[np.int32(4)]])


def test_misused_stages_are_refused(open_run):
    with open_run() as current:
        current.stage("a")(lambda: None)
        with pytest.raises(ConfigError, match="two stages are called 'a'"):
            current.stage("a")
        with pytest.raises(ConfigError, match="share a folder"):
            current.stage("a/b")
        for name in ("../up", "/root", "a b", "", "figures", "figures/x"):
            with pytest.raises(ConfigError, match="stage name"):
                current.stage(name)
        with pytest.raises(ConfigError, match="is not JSON"):
            current.stage("object")(lambda: object())
        with pytest.raises(ConfigError, match="inputs of stage 'inputs' is not JSON"):
            current.stage("inputs", thing=object())
        with pytest.raises(ConfigError, match="'inner' inside stage 'outer'"), current.stage("outer"):
            current.stage("inner")(lambda: None)


def test_only_one_process_writes_a_folder(open_run, tmp_path):
    other = (
        "from bloomery.lab import Recipe, Run\n"
        f"with Run({str(tmp_path / 'run')!r}, Recipe(), quiet=True): print('entered')"
    )
    with open_run():
        beaten = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=False)
        assert "another process is writing this run" in beaten.stderr
        assert "entered" not in beaten.stdout
    free = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=False)
    assert "entered" in free.stdout


def test_foreign_folders_are_refused(recipe_file, tmp_path):
    (tmp_path / "other.py").write_text(recipe_file.read_text())
    run(tmp_path / "other.py", out="mine", preset="smoke", quiet=True)
    with pytest.raises(ConfigError, match="mine: holds a run of 'other', not of 'toy'"):
        run(recipe_file, out="mine", preset="smoke", quiet=True)
    with pytest.raises(ConfigError, match="is for recipe 'other', not 'toy'"):
        run(recipe_file, config="mine/config.yaml", quiet=True)
    Path("stuff").mkdir()
    Path("stuff/thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not empty and not a run folder"):
        run(recipe_file, out="stuff", quiet=True)
    assert [p.name for p in Path("stuff").iterdir()] == ["thesis.txt"]
    with pytest.raises(ConfigError, match="is a file"):
        run(recipe_file, out="stuff/thesis.txt", quiet=True)
    with pytest.raises(ConfigError, match="is not a run folder"):
        run(recipe_file, resume="stuff", quiet=True)
    with pytest.raises(ConfigError, match="no run of toy"):
        run(recipe_file, resume="latest", quiet=True)
    with pytest.raises(ConfigError, match="exclude each other"):
        run(recipe_file, resume="mine", out="mine", quiet=True)


def test_bad_yaml_names_the_file(recipe_file):
    for text, message in [
        ("a: [1", "not valid YAML"),
        ("- 1", "expected a mapping"),
        ("pagse: 1", "unknown field 'pagse'"),
    ]:
        Path("c.yaml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            run(recipe_file, config="c.yaml", quiet=True)
    with pytest.raises(ConfigError, match=r"nope\.yaml: no such file"):
        run(recipe_file, config="nope.yaml", quiet=True)


def test_metrics_take_numbers_of_every_kind_and_stay_json(open_run):
    import torch

    with open_run() as current:
        current.log(1, a=torch.tensor(2.0), b=np.float32(0.5), c=math.nan, d=-math.inf, e=True, f="word")
        with pytest.raises(TypeError, match="single numbers"):
            current.log(2, a=[1, 2])
        (line,) = current.metrics("a")
    assert (line["a"], line["b"], line["d"], line["e"], line["f"]) == (2.0, 0.5, -math.inf, True, "word")
    assert math.isnan(line["c"])
    raw = json.loads((current.folder / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert (raw["c"], raw["d"]) == ("nan", "-inf")


def test_metrics_outside_of_stages_are_those_of_the_last_run(open_run):
    for value in (1, 2):
        with open_run() as current:
            current.stage("kept")(lambda: current.log(0, x=1.0))
            current.log(5, y=value)
            assert [line["y"] for line in current.metrics("y")] == [value]
            assert len(current.metrics(stage="kept")) == 1


def test_tensorboard_gets_the_same_numbers(open_run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_run(track="tensorboard") as current:
        current.stage("train")(lambda: current.log(3, loss=0.25))
    events = EventAccumulator(str(current.folder / "tensorboard"))
    events.Reload()
    (event,) = events.Scalars("train/loss")
    assert (event.step, event.value) == (3, 0.25)


def test_content_of_an_earlier_configuration_goes(open_run):
    with open_run() as current:
        current.text("old", "x")
        current.text("both", "x")
        current.finish()
    with open_run() as current:
        current.text("both", "y")
        current.finish()
        assert [(item["name"], item["text"]) for item in current.content] == [("both", "y")]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(codec=None), max_size=20))
def test_any_text_can_be_kept(open_run, text):
    with open_run() as current:
        current.text("said", text, text)
        current.samples("pairs", [(text, text)])
        stored = json.loads((current.folder / "content.json").read_text(encoding="utf-8"))
    assert len(stored[0]["text"]) == len(text)
    assert not re.search("[\x00-\x08\ud800-\udfff]", stored[0]["text"])


def test_figures_need_a_plain_name(open_run):
    with open_run() as current, pytest.raises(ConfigError, match="figure name"):
        current.figure("../up", "<svg/>")


def test_artefacts_must_exist_and_are_measured(open_run):
    with open_run() as current:
        with current.stage("export") as stage:
            (stage.folder / "weights").write_bytes(b"12345")
            current.artefact(stage.folder, "the model")
        with pytest.raises(ConfigError, match="no such artefact"):
            current.artefact("nowhere")
        (item,) = current.content
    assert (item["name"], item["bytes"]) == ("export", 5)


def test_a_table_with_a_ragged_row_is_refused(open_run):
    with open_run() as current, pytest.raises(ConfigError, match="a row of 1 values for 2 columns"):
        current.table("t", ["a", "b"], [[1]])


def test_stage_memory_counts_a_short_peak_and_children(open_run):
    with open_run() as current:
        current.stage("small")(lambda: None)
        current.stage("large")(lambda: bytearray(b"x" * 150_000_000) and None)
        child = "import time; x = b'x' * 150_000_000; print('up', flush=True); time.sleep(1)"
        current.stage("child")(lambda: subprocess.run([sys.executable, "-c", child], check=True) and None)
        small, large, child = (record.peak_bytes for record in current.stages)
    assert large > small + 100_000_000
    assert child > small + 100_000_000


def test_shown_reads_all_finished_runs(recipe_file):
    run(recipe_file, preset="smoke", quiet=True)
    file = next(Path("runs").glob("toy/*/claims.json"))
    summary = json.loads(file.read_text())
    summary["passed"], summary["claims"][0]["passes"], summary["claims"][0]["ours"] = True, True, {"0": 9.0, "1": 9.0}
    file.write_text(json.dumps(summary))
    (found,) = shown("runs")
    assert found["passed"] is False  # computed from the values, whatever the file says
    assert found["folder"] == str(file.parent)
    assert shown("elsewhere") == []


def test_lab_does_not_import_torch_or_matplotlib():
    heavy = ("torch", "matplotlib", "tyro", "pyarrow")
    code = f"import sys; from bloomery import lab; lab.systems(); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_durations():
    assert [duration(s) for s in (0.04, 9.94, 59.4, 59.6, 3599.7, 7620)] == [
        "0.0 s", "9.9 s", "59 s", "1 min 00 s", "1 h 00 min", "2 h 07 min",
    ]  # fmt: skip


def test_a_toy_recipe_can_live_in_a_test(recipe_file):
    toy = load(recipe_file)
    assert re.fullmatch(r"\d{8}-\d{6}(-\d+)?", run(toy, preset="smoke", quiet=True).folder.name)


def test_odd_line_separators_in_a_metric_survive(open_run):
    with open_run() as current:
        current.stage("a")(lambda: current.log(1, note="one\u2028two\x85three"))
        assert [line["note"] for line in current.metrics()] == ["one\u2028two\x85three"]
    with open_run() as current:
        assert [line["note"] for line in current.metrics()] == ["one\u2028two\x85three"]
