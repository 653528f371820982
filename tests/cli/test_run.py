from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from bloomery.lab import systems


def test_systems_agrees_with_the_catalogue(ok, bloomery):
    listed = ok("systems")
    assert [system["slug"] for system in listed] == [info.slug for info in systems()]
    for system in listed:
        assert system["slug"] in bloomery("systems")[1]
        assert [s["slug"] for s in ok("systems", "--stage", system["stage"])]


def test_fields_are_options(toy, ok):
    result = ok("run", toy, "--pages", 7, "--sources", "a", "b", "--no-shuffle", "--optimiser.lr", 0.5, "--quiet")
    assert result["passed"]
    config = yaml.safe_load((Path(result["folder"]) / "config.yaml").read_text())
    assert (config["pages"], config["sources"], config["shuffle"]) == (7, ["a", "b"], False)
    assert config["optimiser"] == {"lr": 0.5}
    assert config["preset"] == "cpu"
    assert Path(result["report"]).read_text().startswith("<!DOCTYPE html>")


def test_order_of_values_defaults_preset_file_options(toy, ok):
    def pages(*argv):
        return yaml.safe_load((Path(ok("run", toy, "--quiet", *argv)["folder"]) / "config.yaml").read_text())["pages"]

    Path("c.yaml").write_text("pages: 20\n")
    assert pages() == 10
    assert pages("--preset", "smoke") == 3
    assert pages("--preset=smoke", "--config", "c.yaml") == 20
    assert pages("--config=c.yaml", "--pages", 30) == 30
    Path("p.yaml").write_text("preset: gpu\n")
    assert pages("--config", "p.yaml") == 1000


def test_help_of_a_system_shows_its_fields_with_the_presets_values(toy, bloomery):
    _, out, _ = bloomery("run", toy, "--preset", "gpu", "--help")
    text = " ".join(out.replace("│", " ").split())
    assert "Half of everything is noise." in text
    assert "--pages INT How many pages. (default: 1000)" in text
    assert "--optimiser.lr" in text


def test_the_claim_table_and_the_exit_code(toy, bloomery):
    code, out, _ = bloomery("run", toy, "--quiet")
    assert code == 0
    assert "+0.1 ± 0" in out
    assert "holds" in out
    assert "report.html" in out
    code, out, err = bloomery("run", toy, "--gain", 0.01, "--quiet")
    assert code == 1
    assert "does not hold" in out
    assert err == "bloomery: the run finished, but not every claim holds\n"
    code, out, _ = bloomery("run", toy, "--gain", 0.01, "--quiet", "--preset", "smoke")
    assert code == 0  # smoke only shows that it runs
    assert "does not hold" in out


def test_same_command_continues_and_other_values_are_refused(toy, ok, refused):
    first = ok("run", toy, "--out", "mine", "--quiet")
    assert ok("run", toy, "--out", "mine", "--quiet") == first
    assert "pages is 10 there, 11 here" in refused("run", toy, "--out", "mine", "--pages", 11)
    assert ok("run", toy, "--resume", "mine", "--pages", 11, "--quiet")["folder"] == "mine"
    assert yaml.safe_load(Path("mine/config.yaml").read_text())["pages"] == 11
    assert ok("run", toy, "--resume", "mine", "--quiet")["folder"] == "mine"
    assert yaml.safe_load(Path("mine/config.yaml").read_text())["pages"] == 11
    assert "preset 'cpu', not 'smoke'" in refused("run", toy, "--resume", "mine", "--preset", "smoke")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--pagse", 3), "unknown option '--pagse': did you mean '--pages'"),
        (("--pages", "many"), "--pages: invalid literal"),
        (("--preset", "smok"), "unknown preset 'smok' of toy (did you mean 'smoke'?)"),
        (("--config", "broken.yaml"), "broken.yaml: not valid YAML"),
        (("--config", "typo.yaml"), "unknown field 'pagse' (did you mean 'pages'?)"),
        (("--config", "type.yaml"), "toy.pages: expected int, got 'many'"),
        (("--config", "other.yaml"), "other.yaml: is for recipe 'flextok', not 'toy'"),
        (("--config", "nowhere.yaml"), "nowhere.yaml: no such file"),
        (("--resume", "nowhere"), "nowhere: is not a run folder"),
        (("--resume", "latest"), "no run of toy under runs/"),
        (("--out", "full"), "full: is not empty and not a run folder"),
        (("--end", "badly"), "invalid choice 'badly'"),
    ],
)
def test_bad_input_gives_one_line_and_writes_nothing(toy, argv, message, refused):
    Path("broken.yaml").write_text("pages: [1\n")
    Path("typo.yaml").write_text("pagse: 1\n")
    Path("type.yaml").write_text("pages: many\n")
    Path("other.yaml").write_text("recipe: flextok\npages: 1\n")
    Path("full").mkdir()
    Path("full/thesis.txt").touch()
    before = sorted(Path().rglob("*"))
    assert message in refused("run", toy, *argv)
    assert [path for path in sorted(Path().rglob("*")) if "__pycache__" not in path.parts] == before


def test_claims_lists_the_newest_run_of_every_preset(toy, ok, bloomery):
    assert ok("claims") == []
    assert "no finished run" in bloomery("claims")[1]
    for gain in (0.2, 0.01):
        bloomery("run", toy, "--gain", gain, "--out", f"runs/toy/{gain}", "--quiet")
    file = Path("runs/toy/0.2/claims.json")
    file.write_text(file.read_text().replace('"finished": "2', '"finished": "1'))  # make it the older one
    newest = ok("claims")
    assert [(run["folder"], run["passed"]) for run in newest] == [("runs/toy/0.01", False)]
    assert [run["folder"] for run in ok("claims", "--all")] == ["runs/toy/0.2", "runs/toy/0.01"]
    _, out, _ = bloomery("claims")
    assert "does not hold" in out
    assert "+0.01 ± 0 nats/byte" in out


def test_a_damaged_claims_file_is_named(toy, bloomery, refused):
    bloomery("run", toy, "--out", "runs/toy/1", "--quiet")
    Path("runs/toy/1/claims.json").write_text("{")
    assert "runs/toy/1/claims.json: not valid JSON" in refused("claims")
    Path("runs/toy/1/claims.json").write_text(json.dumps({"claims": []}))
    assert "runs/toy/1/claims.json" in refused("claims")


def test_claims_runs_every_system_first(toy, bloomery, monkeypatch):
    from bloomery.lab import catalogue

    recipes = Path("recipes")
    recipes.mkdir()
    for name, change in {"holds": "", "fails": "gain: float = 0.01", "breaks": 'end: str = "bug"'}.items():
        text = toy.read_text()
        if change:
            field = change.partition(":")[0]
            text = "\n".join(
                f"    {change}" if line.startswith(f"    {field}: ") else line for line in text.split("\n")
            )
        (recipes / f"{name}.py").write_text(text)
    listed = catalogue.systems(recipes)
    monkeypatch.setattr("bloomery.lab.systems", lambda: listed)
    monkeypatch.setattr("bloomery.lab.launch.load", lambda slug: catalogue._load_file(recipes / f"{slug}.py"))

    code, out, err = bloomery("claims", "--run", "--json")
    assert code == 1
    assert [(run["recipe"], run["passed"]) for run in json.loads(out)] == [("fails", False), ("holds", True)]
    assert "breaks: unexpected KeyError: 'missing'" in err
    assert err.rstrip().endswith("bloomery: 2 failed: breaks, fails")

    (recipes / "breaks.py").unlink()
    listed[:] = [info for info in listed if info.slug != "breaks"]
    code, out, _ = bloomery("claims", "--run", "--preset", "smoke", "--root", "elsewhere")
    assert code == 0  # smoke does not judge
    assert "does not hold" in out
