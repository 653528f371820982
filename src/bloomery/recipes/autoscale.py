"""AutoScale: the best data mixture of a large run, from the best mixtures of two small ones.

*In theory* (seconds): seven domains whose losses are power laws with known constants. The optima at budgets 0.3 and
1.2, each domain's amount off by 5 %, predict the mixture for 400 (arXiv 2407.20177, §4); beside it the uniform mixture
and the optimum at 0.3 used unchanged.

*In practice*: four domains that every machine has (docstrings, source code, sums, log lines), and byte 5-gram models,
which learn from text without training steps and so without their noise. DDO trains with each domain scaled up and down
threefold at two small budgets, several times with the texts in other orders, fits a power law to each, and solves for
the best amounts; AutoScale extrapolates from the two to a larger budget. Mixtures are compared by the mean loss over
the domains' held-out text, in nats per byte: AutoScale; *uniform*; *natural* (as much of each as there is); the optimum
of the smaller budget; *DDO at the target*, which costs nine runs of the full size; *excess loss*, DoReMi's idea in one
step: weights in proportion to what a model of the larger budget has gained over one of the smaller; *RegMix* (arXiv
2407.01492), a regression of the smaller budget's loss on random mixtures, as many runs as DDO takes there; the *best
random* one of many mixtures, which says how good a mixture can be; and *unguarded*, the paper's formula as it is.

What is known to fail: extrapolating a domain that sat on its floor, that has saturated (more of it harms the others),
or that grew much faster than the whole, which three points per domain make likely. The guard rails of
`corpus.autoscale` hold it; the report says when they did, and what the unguarded formula would have given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from bloomery.core.errors import ConfigError, DataError
from bloomery.core.seeds import derive, rng
from bloomery.lab import Claim, Recipe, Run, figures, recipe
from bloomery.lab.grid import RunGrid

if TYPE_CHECKING:
    import numpy as np


PAPER = "arXiv:2407.20177"
AUTOSCALE, UNIFORM, NATURAL, SMALL, DIRECT, EXCESS, UNGUARDED, REGMIX, RANDOM = ARMS = (
    "AutoScale", "uniform", "natural", "small-scale optimum", "DDO at the target", "excess loss", "unguarded",
    "RegMix", "best random",
)  # fmt: skip
DOMAINS = ("docstrings", "source", "sums", "logs")
FACTORS = (1 / 3, 3.0)
FLOOR = 0.2  # of a domain's uniform share
FLAT = 0.01  # mixtures whose loss is within this of the best count as equally good
CANDIDATES, AVERAGED = 20_000, 100  # mixtures that the regression of RegMix rates, and how many of the best it averages
NOISE, THEORY_TRIALS, THEORY_TARGET = 0.05, 20, 400.0


@dataclass(frozen=True)
class Optimum:
    """The best amounts at one budget, and how far to trust them."""

    amounts: dict[str, float]
    base: dict[str, float]  # losses of the uniform run
    floored: list[str]
    saturated: list[str]
    noise: dict[str, float]  # relative standard error of the amounts over the repeats
    notes: list[str]


@recipe(paper="arXiv:2407.20177", stage="mix")
@dataclass(kw_only=True)
class AutoScale(Recipe):
    """Data mixtures that fit the scale they are meant for."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "smoke": {"budgets": [8_000, 24_000], "target": 48_000, "trials": 1, "domain_bytes": 60_000,
                  "repeats": 2, "mixtures": 2},
        "cpu": {},
        "gpu": {"budgets": [300_000, 1_200_000], "target": 6_000_000, "domain_bytes": 12_000_000, "trials": 5,
                "repeats": 5, "mixtures": 50},
    }  # fmt: skip

    # --8<-- [start:fields]
    budgets: list[int] = field(default_factory=lambda: [120_000, 360_000])
    """Bytes that the runs of DDO read, at the smaller and the larger scale."""
    target: int = 2_160_000
    """Bytes that the compared models read."""
    order: int = 5
    """Bytes of an n-gram."""
    domain_bytes: int = 2_500_000
    """Text of each generated domain."""
    repeats: int = 3
    """Runs of DDO at the small budgets, each with the texts in another order."""
    mixtures: int = 16
    """Random mixtures at the target, of which the best is shown."""
    trials: int = 3
    """Seeds of everything."""
    # --8<-- [end:fields]

    def __post_init__(self) -> None:
        if len(self.budgets) != 2 or not 0 < self.budgets[0] < self.budgets[1] < self.target:
            given = f"budgets {self.budgets}, target {self.target}"
            raise ConfigError(given, fix="two budgets below the target, ascending")
        for name in ("order", "domain_bytes", "repeats", "mixtures", "trials"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", fix="1 or more")

    def run(self, run: Run) -> Iterator[Claim]:
        """The theory, then DDO at two budgets, the predictions, and the comparison at the target."""
        theory = run.stage("theory")(self.theory)
        yield self.theory_claim(theory)
        plans: dict[int, Any] = {}
        for trial in range(self.trials):
            stage = run.stage(f"practice/{trial}")
            plans[trial] = stage(self.practice, stage.folder, trial, run.quiet)
        self.show(run, theory, plans)
        losses = {arm: {t: plan["losses"][arm]["mean"] for t, plan in plans.items()} for arm in ARMS}
        common: dict[str, Any] = {
            "paper": PAPER, "better": "lower", "unit": "nats/byte, mean over domains",
            "note": f"DDO at {self.budgets[0]:,} and {self.budgets[1]:,} bytes, target {self.target:,}",
        }  # fmt: skip
        yield Claim(
            statement="DDO at the target budget beats the uniform mixture",
            ours=losses[DIRECT],
            baseline=losses[UNIFORM],
            margin=0.0,
            names=(DIRECT, UNIFORM),
            **common,
        )
        yield Claim(
            statement="AutoScale, which never trains at the target budget, beats the uniform mixture",
            ours=losses[AUTOSCALE],
            baseline=losses[UNIFORM],
            margin=0.0,
            names=(AUTOSCALE, UNIFORM),
            **common,
        )
        yield Claim(
            statement="AutoScale beats the optimum of the smaller budget",
            ours=losses[AUTOSCALE],
            baseline=losses[SMALL],
            margin=0.0,
            names=(AUTOSCALE, SMALL),
            **common,
        )

    # --- theory ------------------------------------------------------------------------------------------------------

    def theory(self) -> dict[str, Any]:
        """Loss at the target under each mixture, by trial, and how far the exact prediction is from the optimum."""
        import numpy as np

        from bloomery.corpus.autoscale import predict

        found: dict[str, list[float]] = {name: [] for name in ("optimum", AUTOSCALE, UNIFORM, SMALL)}
        exact = 0.0
        for trial in range(THEORY_TRIALS):
            random = rng(self.seed, "theory", trial)
            gamma, beta = random.uniform(0.15, 0.6, 7), random.uniform(0.5, 3, 7)
            small, large, best = (_optimum(gamma, beta, n) for n in (0.3, 1.2, THEORY_TARGET))

            def loss(amounts: np.ndarray, gamma: np.ndarray = gamma, beta: np.ndarray = beta) -> float:
                return float((beta * (amounts * THEORY_TARGET / amounts.sum()) ** -gamma).sum())

            def predicted(noise: float, random: Any = random, small: Any = small, large: Any = large) -> np.ndarray:
                first, second = (n * np.exp(random.normal(0, noise, 7)) for n in (small, large))
                second = np.maximum(second, first * 1.001)
                one, two = ({str(i): float(n) for i, n in enumerate(amounts)} for amounts in (first, second))
                found = predict(one, two, THEORY_TARGET, max_t=10.0, max_rate=2.0)
                return np.array(list(found.amounts.values()))

            exact = max(exact, float(np.abs(predicted(0.0) / best - 1).max()))
            mixtures = {"optimum": best, AUTOSCALE: predicted(NOISE), UNIFORM: np.ones(7), SMALL: small}
            for name, amounts in mixtures.items():
                found[name].append(loss(amounts))
        return {"losses": found, "exact": exact}

    def theory_claim(self, theory: Mapping[str, Any]) -> Claim:
        """AutoScale against the mixture of the small scale, by trial."""
        losses = theory["losses"]
        return Claim(
            statement="Where losses are power laws, the mixture extrapolated 333-fold beats the small-scale optimum",
            paper=PAPER,
            ours=dict(enumerate(losses[AUTOSCALE])),
            baseline=dict(enumerate(losses[SMALL])),
            better="lower",
            margin=0.05,
            unit="sum of seven losses",
            names=(AUTOSCALE, SMALL),
            note=f"both optima off by {NOISE:.0%}; without noise the prediction is exact to {theory['exact']:.1e}",
        )

    # --- practice ----------------------------------------------------------------------------------------------------

    def practice(self, folder: Any, trial: int, quiet: bool) -> dict[str, Any]:
        """DDO at both budgets, the mixtures, and the loss of each at the target."""
        import numpy as np

        from bloomery.corpus.autoscale import predict
        from bloomery.recipes._domains import domains

        data = domains(derive(self.seed, "domains", trial) % 2**31, self.domain_bytes)

        def train(amounts: Mapping[str, float], order: int = 0) -> Mapping[str, Any]:
            return self.train(data, amounts, order)

        grid = RunGrid(folder / "grid.jsonl", train, quiet)
        small, large = (self.ddo(grid, budget, self.repeats) for budget in self.budgets)
        direct = self.ddo(grid, self.target, 1)  # what AutoScale is to spare: no more than once
        notes = [*small.notes, *large.notes, *direct.notes]
        rising = {d: max(large.amounts[d], small.amounts[d]) for d in DOMAINS}
        for d in DOMAINS:
            if rising[d] > large.amounts[d]:
                notes.append(f"{d}: its best amount fell to {large.amounts[d] / rising[d]:.0%}, taken as unchanged")
        gained = {d: small.base[d] - large.base[d] for d in DOMAINS}
        mixtures: dict[str, dict[str, float]] = {
            UNIFORM: dict.fromkeys(DOMAINS, 1.0),
            NATURAL: {name: float(sum(map(len, texts))) for name, (texts, _) in data.items()},
            SMALL: small.amounts,
            DIRECT: direct.amounts,
            EXCESS: {d: max(gain, 1e-3) for d, gain in gained.items()},
            UNGUARDED: predict(small.amounts, rising, self.target, max_t=1e9, max_rate=1e9).amounts,
        }
        spread: dict[str, float] = {}
        try:
            held = predict(
                small.amounts, rising, self.target, floored=[*small.floored, *large.floored],
                saturated=[*small.saturated, *large.saturated],
                noise={d: max(small.noise[d], large.noise[d]) for d in DOMAINS},
            )  # fmt: skip
            mixtures[AUTOSCALE], spread, notes = held.amounts, held.spread, [*notes, *held.warnings]
        except DataError as error:  # nothing to extrapolate: the optimum of the larger budget is the best guess
            mixtures[AUTOSCALE], notes = large.amounts, [*notes, f"no extrapolation: {error.what}"]
        mixtures[REGMIX] = self.regmix(grid, trial)
        drawn = rng(self.seed, "mixtures", trial).dirichlet(np.full(len(DOMAINS), 2.0), self.mixtures)
        random = [dict(zip(DOMAINS, map(float, row), strict=True)) for row in drawn]
        tried = [result["mean"] for result in grid.fill({"amounts": _scaled(row, self.target)} for row in random)]
        mixtures[RANDOM] = random[tried.index(min(tried))]
        amounts = {arm: _scaled(mixtures[arm], self.target) for arm in ARMS}
        losses = dict(zip(ARMS, grid.fill({"amounts": amounts[arm]} for arm in ARMS), strict=True))
        best = min(loss["mean"] for loss in losses.values())
        notes.append(f"{sum(loss < best * (1 + FLAT) for loss in tried)} of {len(tried)} random mixtures are within "
                     f"{FLAT:.0%} of the best mixture")  # fmt: skip
        weights = {arm: _scaled(mixtures[arm], 1.0) for arm in ARMS}
        return {"losses": losses, "weights": weights, "spread": spread, "notes": notes, "runs": len(grid)}

    def ddo(self, grid: RunGrid, budget: int, repeats: int) -> Optimum:
        """The best amounts at one budget: from the mean losses of the repeats, their noise from each repeat alone."""
        import numpy as np

        share = budget / len(DOMAINS)
        bases = [grid(amounts=dict.fromkeys(DOMAINS, share), order=r) for r in range(repeats)]
        curves: dict[str, np.ndarray] = {}  # by domain: loss relative to the base run, (repeats, factors)
        for domain in DOMAINS:
            runs = [{d: share * (factor if d == domain else 1.0) for d in DOMAINS} for factor in FACTORS]
            losses = [[grid(amounts=run, order=r)["mean"] for run in runs] for r in range(repeats)]
            curves[domain] = np.array(losses) / np.array([[base["mean"]] for base in bases])
        best, floored, saturated, notes = _best({d: curve.mean(axis=0) for d, curve in curves.items()}, budget)
        alone = [_best({d: curve[r] for d, curve in curves.items()}, budget)[0] for r in range(repeats)]
        logs = np.log([[amounts[d] for d in DOMAINS] for amounts in alone])
        error = logs.std(axis=0, ddof=1) / repeats**0.5 if repeats > 1 else np.zeros(len(DOMAINS))
        noise = dict(zip(DOMAINS, map(float, error), strict=True))
        return Optimum({d: x * share for d, x in best.items()}, bases[0], floored, saturated, noise, notes)

    def regmix(self, grid: RunGrid, trial: int) -> dict[str, float]:
        """The mixture that random ones at the smaller budget predict to be best; as many runs as DDO takes there.

        The loss is a quadratic in the logarithm of each domain's share, without cross terms, by least squares; no
        domain gets less than its floor, as in DDO.
        """
        import numpy as np

        def features(shares: np.ndarray) -> np.ndarray:
            logs = np.log(np.maximum(shares, 1e-3))
            return np.concatenate([np.ones((len(shares), 1)), logs, logs**2], axis=1)

        random = rng(self.seed, "regmix", trial)
        shares = random.dirichlet(np.full(len(DOMAINS), 2.0), (len(FACTORS) * len(DOMAINS) + 1) * self.repeats)
        runs = [
            {"amounts": _scaled(dict(zip(DOMAINS, map(float, row), strict=True)), self.budgets[0])} for row in shares
        ]
        losses = np.array([result["mean"] for result in grid.fill(runs)])
        weights = np.linalg.lstsq(features(shares), losses, rcond=None)[0]
        rated = random.dirichlet(np.full(len(DOMAINS), 2.0), CANDIDATES)
        rated = rated[(rated >= FLOOR / len(DOMAINS)).all(axis=1)]
        best = rated[np.argsort(features(rated) @ weights)[:AVERAGED]].mean(axis=0)
        return dict(zip(DOMAINS, map(float, best), strict=True))

    def train(
        self, data: Mapping[str, tuple[list[str], list[str]]], amounts: Mapping[str, float], order: int = 0
    ) -> dict[str, float]:
        """Held-out loss of each domain, and their mean, of a model of the first `amounts` bytes of each domain."""
        from bloomery.corpus.ngram_lm import NGramModel

        read = list[str]()
        for name, (texts, _) in data.items():
            shuffled = rng(self.seed, "order", order).permutation(len(texts))
            read += _first([texts[i] for i in shuffled], amounts[name])
        model = NGramModel(read, self.order)
        losses = {name: model.loss(held) for name, (_, held) in data.items()}
        return {**losses, "mean": sum(losses.values()) / len(losses)}

    # --- report ------------------------------------------------------------------------------------------------------

    def show(self, run: Run, theory: Mapping[str, Any], plans: Mapping[int, Any]) -> None:
        """Losses by mixture, the mixtures, and which guard rails held."""
        values = {arm: {t: plan["losses"][arm]["mean"] for t, plan in plans.items()} for arm in ARMS}
        caption = "Mean over the domains' held-out text at the target budget; one dot per seed."
        run.figure("losses", figures.bars(values, y="nats per byte", zero=False), caption)
        rows = [
            [arm, t, *(f"{plan['weights'][arm][d]:.3f}" for d in DOMAINS),
             f"{plan['losses'][arm]['mean']:.4f}"]
            for arm in ARMS for t, plan in plans.items()
        ]  # fmt: skip
        run.table("mixtures", ["mixture", "seed", *DOMAINS, "loss"], rows, "Unguarded: the paper's formula as it is.")
        spreads = [[t, *(f"{plan['weights'][AUTOSCALE][d]:.3f} ± {plan['spread'].get(d, 0):.3f}" for d in DOMAINS)]
                   for t, plan in plans.items()]  # fmt: skip
        run.table("spread", ["seed", *DOMAINS], spreads, "AutoScale's shares, with the noise of the repeated runs.")
        lines = [f"seed {t}: {note}" for t, plan in plans.items() for note in plan["notes"]]
        run.text("guards", "\n".join(lines) or "none", "What could not be fitted, and which guard rails held.")
        means = {name: sum(v) / len(v) for name, v in theory["losses"].items()}
        table = [[name, f"{mean:.3f}"] for name, mean in means.items()]
        run.table("theory", ["mixture", f"loss at {THEORY_TARGET:g}"], table, f"{THEORY_TRIALS} random worlds.")


def _best(curves: Mapping[str, np.ndarray], budget: int) -> tuple[dict[str, float], list[str], list[str], list[str]]:
    """Best amounts in units of the uniform share; domains on their floor, domains that have saturated; notes.

    `curves` are the losses at `FACTORS`, relative to the base run.
    """
    from bloomery.corpus.autoscale import fit_power_law, optimal_amounts

    laws, notes = {}, []
    for domain, curve in curves.items():
        try:
            laws[domain] = fit_power_law([*FACTORS, 1.0], [*curve, 1.0], allow_negative_transfer=True)
        except DataError as error:
            notes.append(f"{domain} at {budget:,}: {error.what}; it gets its floor")
    unfit = [domain for domain in curves if domain not in laws]
    best = dict.fromkeys(curves, FLOOR if laws else 1.0)
    if laws:
        best |= optimal_amounts(laws, len(curves) - FLOOR * len(unfit), FLOOR)
    floored = [domain for domain, amount in best.items() if amount <= FLOOR * 1.001 or domain in unfit]
    return best, floored, [domain for domain, law in laws.items() if law.saturated], notes


def _optimum(gamma: np.ndarray, beta: np.ndarray, budget: float) -> np.ndarray:
    """The amounts with that sum which minimise the sum of beta N^-gamma."""
    import numpy as np

    low, high = -60.0, 60.0
    for _ in range(200):
        middle = (low + high) / 2
        amounts = (beta * gamma / np.exp(middle)) ** (1 / (gamma + 1))
        low, high = (middle, high) if amounts.sum() > budget else (low, middle)
    return amounts


def _first(texts: Sequence[str], amount: float) -> list[str]:
    """The first texts of `amount` characters together; read again from the beginning where there are fewer."""
    wanted, kept = round(amount), list[str]()
    while wanted > 0 and texts:
        for text in texts:
            if wanted <= 0:
                break
            kept.append(text[:wanted])
            wanted -= len(text)
    return kept


def _scaled(weights: Mapping[str, float], total: float) -> dict[str, float]:
    """The same proportions with another sum."""
    factor = total / sum(weights.values())
    return {name: weight * factor for name, weight in weights.items()}
