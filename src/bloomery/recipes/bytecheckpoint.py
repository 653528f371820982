"""ByteCheckpoint in miniature: checkpoints that do not know how the run was sharded, beside PyTorch's own.

Seven statements of arXiv:2407.20143 at a size that fits a laptop, each on real processes where it is about processes:

- *resharding*: one job saved in five layouts and taken up in six, to the bit, and the steps after it;
- *stall*: how long an asynchronous save holds training up, beside a synchronous one and other libraries;
- *balance*: who writes what all ranks hold;
- *reads*: bytes read from the disk to fill several replicas;
- *irregular shards*: boxes of a flat buffer where they lie, beside gathering it;
- *plans*: what planning costs the first time and after, with many ranks simulated by one process;
- *crashes*: jobs killed while they save, bits turned over on the disk.

Peers are torch.distributed.checkpoint, torch_checkpointing where it is installed, and a plain `torch.save` per rank.
Left out: HDFS, transfers between GPUs, more than four real ranks, and the paper's factors, which are of its disks.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bloomery.core.errors import ConfigError
from bloomery.lab import Claim, Recipe, Run, recipe

if TYPE_CHECKING:
    from bloomery.recipes._bytecheckpoint_ranks import Ranks

LAYOUTS = ("DDP 2", "FSDP2 2", "FSDP2 x TP 2x2", "TP 2", "ZeRO 3")  # the name ends in its ranks
PEERS = ("DCP", "torch_checkpointing", "torch.save")


# --8<-- [start:fields]
@recipe(paper="arXiv:2407.20143", stage="pretrain")
@dataclass(kw_only=True)
class ByteCheckpoint(Recipe):
    """Layout-free, crash-safe checkpoints: resharding, stall, balance, reads, plans and kills beside PyTorch's."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"layouts": ["DDP 2", "FSDP2 2"], "peers": ["DCP"], "vocab": 256, "dim": 64, "depth": 1, "rounds": 1,
                  "before": 2, "after": 3, "readers": 2, "flat_ranks": 2, "flat_elements": 30_000, "tensors": 20,
                  "planned_ranks": 8, "large_ranks": 128, "large_layers": 16, "kills": 3,
                  "kill_elements": 20_000, "flips": 6},
        "cpu": {},
        "gpu": {"dim": 2048, "depth": 23, "mixed": True, "ranks": 1},
    }  # fmt: skip

    layouts: list[str] = field(default_factory=lambda: list(LAYOUTS))
    """Layouts to save in and to load into, beside one process alone."""
    before: int = 5
    """Training steps before the save."""
    after: int = 20
    """Steps that are compared after loading."""
    vocab: int = 32_000
    """Vocabulary of the model whose state is timed."""
    dim: int = 512
    """Its width, a multiple of 64."""
    depth: int = 7
    """Its layers."""
    mixed: bool = False
    """Whether it has bfloat16 weights beside float32 masters (14 bytes a parameter instead of 12)."""
    ranks: int = 2
    """Processes that save and load it; one GPU each where there are as many."""
    rounds: int = 3
    """Saves and loads of each library, in turns; medians count."""
    peers: list[str] = field(default_factory=lambda: list(PEERS))
    """Libraries to compare with; one that is not installed is left out."""
    readers: int = 4
    """Replicas that read one checkpoint."""
    flat_ranks: int = 3
    """Ranks that share a flat buffer."""
    flat_elements: int = 25_000_000
    """Its elements, 4 bytes each."""
    tensors: int = 2_000
    """Tensors of the plan that is made for `planned_ranks`."""
    planned_ranks: int = 64
    """Simulated ranks, a multiple of 8: shards of eight, replicated."""
    large_ranks: int = 1_024
    """Simulated ranks of a run of 405B parameters, a multiple of 128."""
    large_layers: int = 126
    """Its layers."""
    kills: int = 30
    """Jobs that are killed."""
    kill_elements: int = 2_000_000
    """Elements of each of the four tensors that they save."""
    flips: int = 100
    """Bits that are turned over, one at a time."""
    # --8<-- [end:fields]

    def __post_init__(self) -> None:
        for name in ("before", "after", "vocab", "depth", "ranks", "rounds", "readers", "flat_ranks", "flat_elements",
                     "tensors", "large_layers", "kills", "kill_elements", "flips"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="1 or more")
        for name, unit in (("dim", 64), ("planned_ranks", 8), ("large_ranks", 128)):
            value = getattr(self, name)
            if value < unit or value % unit:
                raise ConfigError(f"{name} is {value}", fix=f"a multiple of {unit}")
        for name, known in (("layouts", LAYOUTS), ("peers", PEERS)):
            unknown = [value for value in getattr(self, name) if value not in known]
            if unknown or len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ConfigError(f"{name} are {getattr(self, name)}", fix=f"each at most once of: {', '.join(known)}")
        if not self.layouts or "DCP" not in self.peers:
            raise ConfigError("no layout, or no DCP among the peers", fix="claims compare with DCP")

    def run(self, run: Run) -> Iterator[Claim]:
        """Measure each in a stage of its own."""
        from bloomery.recipes import _bytecheckpoint_report as report
        from bloomery.recipes._bytecheckpoint_ranks import Ranks

        found: dict[str, Any] = {}
        worlds = [int(name[-1]) * (2 if "x" in name else 1) for name in self.layouts]
        with Ranks(max(*worlds, self.ranks, self.readers, self.flat_ranks)) as ranks:
            for layout in ("FSDP2", "DDP"):
                stage = run.stage(f"time-{layout}")
                found[layout] = stage(self.time, ranks, layout, stage.folder)
            stage = run.stage("reads")
            found["reads"] = stage(self.read, ranks, stage.folder)
            found["irregular"] = run.stage("irregular")(self.irregular, ranks)
            stage = run.stage("reshard")
            found["reshard"] = stage(self.reshard, ranks, stage.folder)
        found["plans"] = run.stage("plans")(self.plan)
        stage = run.stage("kills")
        found["kills"] = stage(self.kill, stage.folder)
        stage = run.stage("flips")
        found["flips"] = stage(self.flip, stage.folder)
        report.show(run, found)
        yield from report.claims(found)

    # --- stages ------------------------------------------------------------------------------------------------------

    def reshard(self, ranks: Ranks, folder: Path) -> dict[str, Any]:
        """Losses of every layout's own run, and for every pair what differs after loading."""
        from bloomery.recipes import _bytecheckpoint_layouts as layouts

        fresh(folder)
        folders = {name: folder / name.replace(" ", "-") for name in self.layouts}
        alone: dict[str, list[float]] = {}
        for name, place in folders.items():
            place.mkdir(parents=True)
            told = (name, place, self.seed, self.before, self.after)
            alone[name] = ranks.run(layouts.WORLDS[name], layouts.save_run, *told)[0]
        pairs = {
            name: ranks.run(layouts.WORLDS[name], layouts.load_runs, name, folders, self.seed, self.before, self.after)[
                0
            ]
            for name in (*self.layouts, layouts.ALONE)
        }
        return {"uninterrupted": alone, "pairs": pairs}

    def time(self, ranks: Ranks, layout: str, folder: Path) -> dict[str, Any]:
        """Seconds, stall and memory of each library; memory in the first layout, before anything keeps a buffer."""
        from bloomery.recipes._bytecheckpoint_engines import available
        from bloomery.recipes._bytecheckpoint_measure import compare

        names = tuple(name for name in available() if name == "ours" or name in self.peers)
        every = ranks.run(self.ranks, compare, self.size, layout, names, fresh(folder), self.rounds, self.seed)
        for name in names:  # times are those of the slowest rank already
            every[0][name]["memory"] = max(each[name]["memory"] for each in every)
        return {**every[0], "missing": [name for name in self.peers if name not in names]}

    @property
    def size(self) -> Any:
        """The model that is timed."""
        from bloomery.recipes._bytecheckpoint_measure import Size

        return Size(self.vocab, self.dim, self.depth, self.mixed)

    def read(self, ranks: Ranks, folder: Path) -> dict[str, Any]:
        """Bytes that all replicas together read for one load."""
        from bloomery.recipes._bytecheckpoint_measure import Size, reads

        small = Size(self.vocab // 4 or 1, max(64, self.dim // 2 // 64 * 64), self.depth)
        every = ranks.run(self.readers, reads, small, fresh(folder), self.seed)
        total = {key: sum(each[key] for each in every) for key in every[0]}
        return {**total, "state": every[0]["state"], "readers": self.readers}

    def irregular(self, ranks: Ranks) -> dict[str, Any]:
        """Seconds of both ways, and what they send."""
        from bloomery.recipes._bytecheckpoint_measure import irregular

        every = ranks.run(self.flat_ranks, irregular, self.flat_elements, self.rounds, self.seed)
        return {**every[0], "boxes": sum(each["boxes"] for each in every), "ranks": self.flat_ranks}

    def plan(self) -> dict[str, Any]:
        """Balance and seconds of plans."""
        from bloomery.recipes import _bytecheckpoint_plans as plans

        return {
            "balance": plans.balance(plans.skewed(self.tensors // 5, self.seed), 4),
            "many": plans.planning(plans.many_tensors(self.tensors, 8), self.planned_ranks),
            "DCP": plans.dcp_planning(self.tensors, self.planned_ranks),
            "large": plans.planning(plans.large(self.large_ranks, self.large_layers), self.large_ranks),
        }

    def kill(self, folder: Path) -> dict[str, Any]:
        """What killed jobs leave."""
        from bloomery.recipes._bytecheckpoint_crash import kills

        return kills(fresh(folder), self.kills, self.kill_elements, self.seed)

    def flip(self, folder: Path) -> dict[str, Any]:
        """What damaged checkpoints load as."""
        from bloomery.recipes._bytecheckpoint_crash import flips

        return flips(fresh(folder), self.flips, max(8, self.kill_elements // 8), self.seed)


def fresh(folder: Path) -> Path:
    """The folder, empty: a stage that was interrupted leaves checkpoints, which nobody overwrites."""
    for left in folder.iterdir():
        shutil.rmtree(left)
    return folder
