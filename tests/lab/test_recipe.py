from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from bloomery.core.config import encode
from bloomery.core.errors import ConfigError
from bloomery.lab import Recipe, catalogue, load, recipe, run, systems


def test_layers_later_ones_win(recipe_file):
    toy = load(recipe_file)
    assert toy.configure("cpu").pages == 10
    assert toy.configure("smoke").pages == 3
    assert toy.configure("smoke", {"pages": 4}).pages == 4
    assert toy.configure("smoke", {"pages": 4}, {"pages": 5}).pages == 5


def test_a_nested_layer_changes_only_what_it_names(recipe_file):
    smoke = load(recipe_file).configure("smoke", {"optimiser": {"betas": [0.5, 0.6]}})
    assert (smoke.optimiser.lr, smoke.optimiser.betas) == (0.5, (0.5, 0.6))


def test_python_yaml_and_encode_agree(recipe_file):
    toy = load(recipe_file)
    one = toy.configure("gpu", {"seeds": (4, 5), "optimiser": {"lr": 1}})
    assert toy.configure("smoke", encode(one)) == one


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"pagse": 3}, "unknown field 'pagse'.*did you mean 'pages'"),
        ({"optimiser": {"lrr": 3}}, "toy.optimiser: unknown field 'lrr'.*'lr'"),
        ({"pages": "many"}, "toy.pages: expected int, got 'many'"),
        ({"seeds": 3}, "toy.seeds: expected a list"),
        ({"pages": 0}, r"toy: pages=0 \(at least 1\)"),
    ],
)
def test_a_mistake_names_the_field(recipe_file, layer, message):
    with pytest.raises(ConfigError, match=message):
        load(recipe_file).configure("cpu", layer)
    with pytest.raises(ConfigError, match=message):
        run(recipe_file, quiet=True, **layer)


def test_unknown_preset(recipe_file):
    with pytest.raises(ConfigError, match=r"unknown preset 'smok' of toy.*did you mean 'smoke'"):
        load(recipe_file).configure("smok")


ALL = {"smoke": {}, "cpu": {}, "gpu": {}}


def decorate(cls):
    return recipe(paper="p", stage="s")(cls)


def test_the_decorator_checks_the_class():
    @dataclass(kw_only=True)
    class Good(Recipe):
        presets: ClassVar = ALL
        size: int = 1

    assert decorate(Good).stage == "s"

    class NotADataclass(Good):
        pass

    with pytest.raises(ConfigError, match="not a dataclass"):
        decorate(NotADataclass)

    @dataclass(kw_only=True)
    class Taken(Good):
        out: int = 1

    with pytest.raises(ConfigError, match="'out' of Taken is a name"):
        decorate(Taken)

    @dataclass(kw_only=True)
    class Required(Recipe):
        presets: ClassVar = ALL
        needed: int

    with pytest.raises(ConfigError, match="'needed' of Required needs a default"):
        decorate(Required)

    @dataclass(kw_only=True)
    class Typo(Good):
        presets: ClassVar = {**ALL, "gpu": {"sizee": 2}}

    with pytest.raises(ConfigError, match="unknown field 'sizee'"):
        decorate(Typo)

    @dataclass(kw_only=True)
    class Few(Good):
        presets: ClassVar = {"smoke": {}}

    with pytest.raises(ConfigError, match="exactly smoke, cpu, gpu"):
        decorate(Few)


def test_catalogue_reads_without_importing(tmp_path, recipe_file):
    (tmp_path / "_helper.py").write_text("raise SystemError")
    (tmp_path / "plain.py").write_text("raise SystemError('imported')")
    (tmp_path / "boom.py").write_text(
        "raise SystemError('imported')\n@recipe(paper='arXiv:1', stage='web')\n"
        "class Boom:\n    '''First line.\n\n    More.'''\n"
    )
    found = systems(tmp_path)
    assert [(s.slug, s.stage, s.paper, s.summary) for s in found] == [
        ("boom", "web", "arXiv:1", "First line."),
        ("toy", "data", "arXiv:2406.11794", "Half of everything is noise."),
    ]
    assert found[0].to_dict()["path"] == str(tmp_path / "boom.py")


@pytest.mark.parametrize(
    ("source", "message"),
    [("def (:", "not valid Python"), ("@recipe(paper=P, stage='web')\nclass A: ...", "literal strings")],
)
def test_catalogue_names_a_broken_file(tmp_path, source, message):
    (tmp_path / "bad.py").write_text(source)
    with pytest.raises(ConfigError, match=f"bad.py.*{message}"):
        systems(tmp_path)


def test_every_system_in_the_tree_loads_and_agrees_with_the_catalogue():
    for info in systems():
        cls = load(info.slug)
        assert (cls.slug(), cls.paper, cls.stage) == (info.slug, info.paper, info.stage)
        assert cls.summary() == info.summary
        assert info.summary
        assert info.path.parent == catalogue.RECIPES


def test_unknown_system_and_file(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown system 'end_to_emd'.*bloomery systems"):
        load("end_to_emd")
    with pytest.raises(ConfigError, match=r"nowhere\.py: no such recipe file"):
        load(tmp_path / "nowhere.py")
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match="expected one class with @recipe, found 0"):
        load(tmp_path / "empty.py")
