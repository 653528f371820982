"""Balanced sampling: clusters of clusters flatten what is common, as in the curation of DINOv2's images.

Five overlapping rings in the plane hold between 200 and 20,000 points; 1,000 are to be chosen so that all places count
alike (arXiv 2405.15613, §4.1). Measured is the KL divergence of the chosen points from uniform over the occupied cells
of a grid. Beside hierarchical k-means with resampling: the same without resampling, flat k-means with as many clusters
as the upper level has, and a random choice; and initial centroids drawn at random instead of by k-means++, without
which nothing of this works.

The same on real data: 8 x 8 digits, of which some classes are fifty times as frequent as others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from bloomery.core.errors import ConfigError
from bloomery.core.seeds import derive, rng
from bloomery.lab import Claim, Recipe, Run, figures, recipe

if TYPE_CHECKING:
    import numpy as np
    import torch
    from matplotlib.figure import Figure

    from bloomery.worlds.rings import Rings

RESAMPLED, PLAIN, FLAT, RANDOM, NO_PLUS_PLUS = (
    "hierarchical, resampled", "hierarchical", "flat k-means", "random", "random start"
)  # fmt: skip
ARMS = (RESAMPLED, PLAIN, FLAT, RANDOM, NO_PLUS_PLUS)


@recipe(paper="arXiv:2405.15613", stage="curate")
@dataclass(kw_only=True)
class BalancedSampling(Recipe):
    """Hierarchical k-means with resampling, and samples that are even over concepts."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"scale": 0.02, "lower": 60, "upper": 20, "lower_sample": 4, "resamples": 2, "target": 60,
                  "trials": 1, "lloyd": 5},
        "cpu": {},
        "gpu": {"scale": 30.0, "lower": 20_000, "upper": 3_000, "target": 20_000},
    }  # fmt: skip

    # --8<-- [start:fields]
    scale: float = 0.5
    """Points, as a multiple of 29,700."""
    target: int = 1_000
    """Points to choose."""
    lower: int = 800
    """Clusters of the first level."""
    upper: int = 240
    """Clusters of clusters, and those of flat k-means."""
    lower_sample: int = 9
    """Points of each lower cluster that resampling takes: about half of a mean cluster."""
    upper_sample: int = 2
    """Lower clusters of each upper one that resampling takes."""
    resamples: int = 10
    """How often each level is resampled."""
    lloyd: int = 25
    """Lloyd steps of each run."""
    trials: int = 3
    """Seeds of everything."""
    # --8<-- [end:fields]

    def __post_init__(self) -> None:
        for name in ("target", "upper", "lower_sample", "upper_sample", "lloyd", "trials"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="1 or more")
        if self.lower <= self.upper:
            raise ConfigError(f"lower is {self.lower}, upper {self.upper}", fix="more clusters below")

    def run(self, run: Run) -> Iterator[Claim]:
        """Choose in every way with every seed."""
        found: dict[str, dict[int, Any]] = {arm: {} for arm in ARMS}
        digits: dict[str, dict[int, Any]] = {RESAMPLED: {}, RANDOM: {}}
        for trial in range(self.trials):
            for arm in ARMS:
                found[arm][trial] = run.stage(f"rings/{_file(arm)}-{trial}")(self.choose_rings, arm, trial)
        for trial in range(self.trials):
            for arm, by in digits.items():
                by[trial] = run.stage(f"mixture/{_file(arm)}-{trial}")(self.choose_images, arm, trial)
        self.show(run, found, digits)
        kl = {arm: {t: r["kl"] for t, r in by.items()} for arm, by in found.items()}
        yield Claim(
            statement="Hierarchical sampling is at least twice as even as flat k-means",
            paper="arXiv:2405.15613",
            ours=kl[RESAMPLED],
            baseline={t: value / 2 for t, value in kl[FLAT].items()},
            better="lower",
            margin=0.0,
            unit="nats from uniform",
            names=(RESAMPLED, "half of flat k-means"),
            note=f"{self.target:,} of {29_700 * self.scale:,.0f} points; {self.lower} and {self.upper} clusters",
        )
        yield Claim(
            statement="Resampling makes the hierarchy's sample more even",
            paper="arXiv:2405.15613",
            ours=kl[RESAMPLED],
            baseline=kl[PLAIN],
            better="lower",
            margin=0.0,
            unit="nats from uniform",
            names=(RESAMPLED, PLAIN),
        )
        yield Claim(
            statement="With random initial centroids, more than half of a random choice's unevenness stays",
            paper="our own: the initial centroids decide",
            ours={t: value / 2 for t, value in kl[RANDOM].items()},
            baseline=kl[NO_PLUS_PLUS],
            better="lower",
            margin=0.0,
            unit="nats from uniform",
            names=("half of random", NO_PLUS_PLUS),
            note="a high value of the baseline is what is claimed",
        )
        yield Claim(
            statement="Rare classes of images are as frequent in the sample as common ones, nearly",
            paper="arXiv:2405.15613",
            ours={t: r["entropy"] for t, r in digits[RESAMPLED].items()},
            baseline={t: r["entropy"] for t, r in digits[RANDOM].items()},
            better="higher",
            margin=0.1,
            unit="share of the largest entropy",
            names=(RESAMPLED, RANDOM),
            note="ten shapes drawn as 8 x 8 images, five of them fifty times as frequent as the others",
        )

    def choose_rings(self, arm: str, trial: int) -> dict[str, Any]:
        """KL divergence from uniform, and how many points of each ring were chosen."""
        import numpy as np
        import torch

        from bloomery.worlds.rings import rings

        world = rings(derive(self.seed, "rings", trial) % 2**31, self.scale)
        chosen = self.choose(torch.from_numpy(world.points), arm, trial, self.target)
        counts = np.bincount(world.ring[chosen], minlength=5).tolist()
        return {"kl": world.uniformity(chosen), "rings": counts, "chosen": chosen.tolist()}

    def choose(self, points: torch.Tensor, arm: str, trial: int, target: int) -> np.ndarray:
        """Indices of `target` points."""
        import torch

        from bloomery.corpus.balanced import balanced_sample, tree_of
        from bloomery.corpus.kmeans import hierarchical_kmeans

        seed = derive(self.seed, "choose", trial) % 2**31
        random = rng(seed, "random choice")
        if arm == RANDOM:
            return random.choice(len(points), target, replace=False)

        def anywhere(rows: torch.Tensor, k: int) -> torch.Tensor:
            return rows[torch.from_numpy(random.choice(len(rows), k, replace=False))]

        levels = hierarchical_kmeans(
            points,
            (self.upper,) if arm == FLAT else (self.lower, self.upper),
            sample_sizes=None if arm in (FLAT, PLAIN, NO_PLUS_PLUS) else (self.lower_sample, self.upper_sample),
            resamples=self.resamples,
            steps=self.lloyd,
            seed=seed,
            initialise=anywhere if arm == NO_PLUS_PLUS else None,
        )
        return balanced_sample(tree_of(levels, points), target, seed=seed)

    def choose_images(self, arm: str, trial: int) -> dict[str, Any]:
        """Entropy of the classes among the chosen images, as a share of the largest."""
        import numpy as np
        import torch

        images, label = shapes(derive(self.seed, "shapes", trial) % 2**31, max(100, round(1_000 * self.scale)))
        target = min(150, self.target, len(label) // 4)
        chosen = self.choose(torch.from_numpy(images), arm, trial, target)
        share = np.bincount(label[chosen], minlength=10) / len(chosen)
        some = share[share > 0]
        return {"entropy": float(-(some * np.log(some)).sum() / np.log(10)), "classes": share.tolist()}

    def show(self, run: Run, found: Mapping[str, Mapping[int, Any]], digits: Mapping[str, Mapping[int, Any]]) -> None:
        """Where the chosen points lie, how even they are, and how many of each ring."""
        from bloomery.worlds.rings import rings

        world = rings(derive(self.seed, "rings", 0) % 2**31, self.scale)
        caption = "The first seed: every point in grey, the chosen ones in colour."
        run.figure(
            "rings", _scatter(world, {arm: found[arm][0]["chosen"] for arm in (RANDOM, FLAT, RESAMPLED)}), caption
        )
        kl = {arm: {t: r["kl"] for t, r in by.items()} for arm, by in found.items()}
        run.figure("kl", figures.bars(kl, y="nats from uniform"), "Lower is more even; one dot per seed.")
        rows = []
        for arm, by in found.items():
            values = ", ".join(f"{r['kl']:.3f}" for r in by.values())
            rows.append([arm, values, " / ".join(str(n) for n in by[0]["rings"])])
        run.table("rings", ["method", "KL by seed", "points of each ring, first seed"], rows, "")
        entropy = [[arm, ", ".join(f"{r['entropy']:.3f}" for r in by.values())] for arm, by in digits.items()]
        run.table("classes", ["method", "entropy of the classes by seed"], entropy, "1 means all ten alike.")


def shapes(seed: int, common: int) -> tuple[np.ndarray, np.ndarray]:
    """8 x 8 images of ten glyphs, moved, scaled in brightness and noisy; five are fifty times as frequent.

    Returns float64 (n, 64) and the glyph of each image (n,).
    """
    import numpy as np

    random = rng(seed, "glyphs")
    glyphs = rng(0, "ten glyphs").random((10, 6, 6)) > 0.5
    label = np.repeat(np.arange(10), [common] * 5 + [max(2, common // 50)] * 5)
    images = np.zeros((len(label), 8, 8))
    down, right = random.integers(3, size=(2, len(label)))
    for i, kind in enumerate(label):
        images[i, down[i] : down[i] + 6, right[i] : right[i] + 6] = glyphs[kind]
    images = images * random.uniform(0.7, 1.3, (len(label), 1, 1)) + random.normal(0, 0.15, images.shape)
    return images.reshape(len(label), 64), label


def _scatter(world: Rings, chosen: Mapping[str, list[int]]) -> Figure:
    from matplotlib.figure import Figure as Blank

    figure = Blank(figsize=(9.0, 3.2), layout="constrained")
    for place, (arm, points) in enumerate(chosen.items(), start=1):
        axes = figure.add_subplot(1, len(chosen), place)
        for some, size, colour in ((world.points[::8], 1, "#c9ced6"), (world.points[points], 3, "#c2501d")):
            axes.scatter(some[:, 0], some[:, 1], s=size, color=colour, linewidths=0)
        axes.set(title=arm, xticks=[], yticks=[], aspect="equal")
    return figure


def _file(arm: str) -> str:
    return arm.replace(", ", "-").replace(" ", "-")
