"""`run`: carry out a recipe and leave a run folder that tells the whole story."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bloomery.core.config import encode, load_yaml
from bloomery.core.errors import ConfigError, DataError
from bloomery.core.files import read_json, write_json
from bloomery.lab.catalogue import load
from bloomery.lab.claim import Claim
from bloomery.lab.folder import Run, new_folder
from bloomery.lab.recipe import DEFAULT_PRESET, Recipe
from bloomery.lab.report import Report
from bloomery.lab.tracking import Track

R = TypeVar("R", bound=Recipe)


@dataclass(frozen=True)
class RunResult:
    """What a finished run gives back."""

    folder: Path
    claims: list[Claim]

    @property
    def passed(self) -> bool:
        """Whether there is a claim and every claim holds."""
        return bool(self.claims) and all(claim.passes for claim in self.claims)


def run(
    system: str | Path | type[Recipe],
    preset: str | None = None,
    out: Path | str | None = None,
    resume: Path | str | None = None,
    *,
    config: Path | str | Mapping[str, Any] | None = None,
    track: Track | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> RunResult:
    """Run a system and write `claims.json`, `metrics.jsonl`, `report.html`, `config.yaml` and figures in its folder.

    `system` is a slug of the catalogue, the path of a recipe file, or a recipe class. Values: field defaults, then
    `preset` (cpu unless `config` names one), then `config` (a YAML file or a mapping), then `overrides`.

    `out` is the run folder (default `runs/<slug>/<time>`). If it already holds this run with the same values, done
    stages are skipped; with other values it is refused. `resume` names an existing run folder, or "latest": its
    values are taken over, `config` and `overrides` change them, and the stages this touches are run again.
    """
    cls = system if isinstance(system, type) else load(system)
    if resume is not None and out is not None:
        raise ConfigError("out and resume exclude each other", fix="resume names the folder by itself")
    preset, base, folder = configuration(cls, preset, resume, config)
    recipe = cls.configure(preset, encode(base), overrides)
    folder = folder or (Path(out) if out is not None else new_folder(cls.slug()))
    with Run(folder, recipe, preset, changed=resume is not None, track=track, quiet=quiet) as current:
        claims = list(recipe.run(current))
        current.finish()
        result = RunResult(current.folder, claims)
        summary = {
            "recipe": cls.slug(),
            "summary": cls.summary(),
            "paper": cls.paper,
            "stage": cls.stage,
            "preset": preset,
            "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
            "seconds": round(sum(stage.seconds for stage in current.stages), 3),
            "passed": result.passed,
            "claims": [claim.to_dict() for claim in claims],
        }
        write_json(current.folder / "claims.json", summary)
        Report.write(current)
    return result


def configuration(
    cls: type[R],
    preset: str | None = None,
    resume: Path | str | None = None,
    config: Path | str | Mapping[str, Any] | None = None,
) -> tuple[str, R, Path | None]:
    """What a run starts from before overrides: the preset, the recipe's values, and the folder that `resume` means."""
    layers: list[Mapping[str, Any]] = []
    folder = None
    if resume is not None:
        folder = _existing(cls, resume)
        recorded = _read_config(folder / "config.yaml", cls)
        past = recorded.pop("preset", DEFAULT_PRESET)
        if preset not in (None, past):
            raise ConfigError(
                f"holds a run of preset {past!r}, not {preset!r}", where=folder, fix="leave --preset away"
            )
        preset = past
        layers.append(recorded)
    if config is not None:
        given = _read_config(config, cls)
        named = given.pop("preset", None)
        preset = preset or named
        layers.append(given)
    preset = preset or DEFAULT_PRESET
    return preset, cls.configure(preset, *layers), folder


def shown(root: Path | str = "runs") -> list[dict[str, Any]]:
    """The content of every `claims.json` below `root` with its `folder`, oldest first: what this machine has shown."""
    found = []
    for file in sorted(Path(root).glob("*/*/claims.json")):
        summary = read_json(file)
        missing = [name for name in ("recipe", "preset", "finished", "claims") if name not in summary]
        if missing:
            raise DataError(f"not the claims of a run: no {', '.join(missing)}", where=file, fix="run it again")
        claims = [Claim.from_dict(claim) for claim in summary["claims"]]  # verdicts are computed, not believed
        summary |= {"claims": [c.to_dict() for c in claims], "passed": bool(claims) and all(c.passes for c in claims)}
        found.append({"folder": str(file.parent), **summary})
    return sorted(found, key=lambda summary: summary["finished"])


def _existing(cls: type[Recipe], resume: Path | str) -> Path:
    """The run folder that `resume` means."""
    if str(resume) == "latest":
        runs = sorted((Path("runs") / cls.slug()).glob("*/config.yaml"), key=lambda file: file.stat().st_mtime)
        if not runs:
            raise ConfigError(f"no run of {cls.slug()} under runs/", fix="leave --resume away to start one")
        return runs[-1].parent
    folder = Path(resume)
    if not (folder / "config.yaml").exists():
        raise ConfigError("is not a run folder (no config.yaml)", where=folder, fix="name the folder of a run")
    return folder


def _read_config(config: Path | str | Mapping[str, Any], cls: type[Recipe]) -> dict[str, Any]:
    """Fields of a YAML file or mapping; `recipe:` must be this one, `preset:` stays in."""
    values = dict(config) if isinstance(config, Mapping) else load_yaml(config)
    slug = values.pop("recipe", cls.slug())
    if slug != cls.slug():
        where = None if isinstance(config, Mapping) else config
        raise ConfigError(f"is for recipe {slug!r}, not {cls.slug()!r}", where=where)
    return values
