"""What every recipe gets: a typed configuration, a resumable run folder, claims with computed verdicts, a report."""

from __future__ import annotations

from bloomery.lab.catalogue import SystemInfo, load, systems
from bloomery.lab.claim import Claim
from bloomery.lab.folder import Run
from bloomery.lab.launch import RunResult, run, shown
from bloomery.lab.recipe import Recipe, recipe
from bloomery.lab.report import Report
from bloomery.lab.stage import Stage

__all__ = [
    "Claim",
    "Recipe",
    "Report",
    "Run",
    "RunResult",
    "Stage",
    "SystemInfo",
    "load",
    "recipe",
    "run",
    "shown",
    "systems",
]
