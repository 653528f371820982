"""AutoScale (arXiv 2407.20177): data mixtures that fit the scale they are meant for.

1. *DDO* (§3): train with every domain scaled up and down once, fit one power law per domain to the held-out loss, and
   minimise their sum under the budget. `fit_power_law` and `optimal_amounts` are these two steps.
2. *AutoScale* (§4): the best amounts of two small budgets lie on a geometric path, N(t) = N1 (N2/N1)^t, element by
   element; `predict` follows it to the target budget without training there.

What is ours: the minimum is exact (KKT conditions and a bisection, where the authors take gradient steps and mend
negative amounts by hand), amounts have floors and caps (the data there is), domains that harm the others beyond some
amount are allowed, and the path has guard rails, because three noisy points per domain do not bear any extrapolation.
Not here: the offset `a` counts at each of the two budgets, but the path between them has none, as in the paper. No
training either: the losses come from the caller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bloomery.core.errors import ConfigError, DataError
from bloomery.core.seeds import rng

FLOOR = 0.2  # of the uniform share: the least a domain gets, as in the authors' experiments
MAX_T = 3.0  # how far `predict` follows the path: t = 1 is the second budget
MAX_RATE = 1.5  # a domain that grows faster than the total to this power is held at it
UNSURE = 0.5  # a share whose standard deviation is above this part of it is not to be trusted
DRAWS = 50  # of the noise
WORST_FIT = 0.1  # root mean square of the errors, as a share of the losses' range
ITERATIONS = 1_000
TOLERANCE = 1e-14


@dataclass(frozen=True)
class PowerLaw:
    """Held-out loss over the amount x of one domain (1: the base run's amount): (x + a)^-b + c."""

    a: float  # the equivalent of this domain that the other domains supply
    b: float
    c: float
    residual: float = 0.0  # root mean square of what the law leaves unexplained
    saturated: bool = False  # the loss was lowest before the largest amount: from there on the law is flat

    def __call__(self, x: np.ndarray | float) -> np.ndarray | float:
        """The loss at x."""
        return (x + self.a) ** -self.b + self.c

    def slope(self, x: np.ndarray | float) -> np.ndarray | float:
        """How the loss changes with x."""
        return -self.b * (x + self.a) ** (-self.b - 1)


def fit_power_law(
    x: Sequence[float],
    y: Sequence[float],
    sigma: Sequence[float] | None = None,
    allow_negative_transfer: bool = False,
) -> PowerLaw:
    """The power law through at least three points, by Levenberg-Marquardt from (1, 1, 1) like the reference.

    Args:
        x: amounts relative to the base run, such as (1/3, 1, 3).
        y: losses relative to the base run.
        sigma: standard deviation of each loss; points count by its inverse.
        allow_negative_transfer: accept losses that rise beyond some amount, because this domain then harms others. A
            budget is best spent where every loss still falls, so what is beyond the lowest loss counts as equal to it.

    Raises:
        DataError: fewer than three points, a loss that rises (from the least amount on, if that is allowed), or no law
            that fits.
    """
    amounts, losses = np.asarray(x, float), np.array(y, float)
    if len(amounts) < 3 or len(np.unique(amounts)) < 3 or len(losses) != len(amounts):
        raise DataError(f"{len(amounts)} points for three parameters", fix="give 3 or more different amounts")
    if not (np.isfinite(amounts).all() and np.isfinite(losses).all()):
        raise DataError("an amount or a loss is not a finite number")
    order = np.argsort(amounts)
    rising = losses[order]
    lowest = int(np.argmin(rising))
    if lowest == 0 or (rising[-1] >= rising[0] and not allow_negative_transfer):
        raise DataError(
            f"the loss rises with more data ({rising[0]:.4g} to {rising[-1]:.4g})",
            fix="give it its floor" if lowest == 0 else "repeat the runs, or allow_negative_transfer=True",
        )
    saturated = allow_negative_transfer and lowest < len(losses) - 1
    if saturated:
        losses[order[lowest:]] = rising[lowest]
    weights = np.ones(len(amounts)) if sigma is None else 1 / np.asarray(sigma, float)
    parameters = _levenberg_marquardt(amounts, losses, weights)
    law = PowerLaw(*parameters.tolist())
    residual = float(np.sqrt(np.mean((law(amounts) - losses) ** 2)))
    return PowerLaw(law.a, law.b, law.c, residual, saturated)


def _levenberg_marquardt(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(a, b, c) of the least weighted squares, with x + a > 0."""
    now, damping = np.ones(3), 1e-3
    errors, slopes = _errors(now, x, y, weights)
    for _ in range(ITERATIONS):
        if np.abs(slopes.T @ errors).max() <= TOLERANCE or damping > 1e20:
            break
        ridge = np.diag(np.sqrt(damping * (slopes**2).sum(axis=0)))  # as extra rows: the normal equations lose digits
        rows, right = np.concatenate([slopes, ridge]), np.concatenate([errors, np.zeros(3)])
        trial = now - np.linalg.lstsq(rows, right, rcond=1e-15)[0]
        if (x + trial[0]).min() > 0 and np.isfinite(trial).all():
            trial_errors, trial_slopes = _errors(trial, x, y, weights)
            if trial_errors @ trial_errors < errors @ errors:
                now, errors, slopes, damping = trial, trial_errors, trial_slopes, max(damping / 10, 1e-12)
                continue
        damping *= 10
    cost = errors @ errors
    if math.sqrt(cost / len(x)) > WORST_FIT * max(np.ptp(y), 1e-9):
        raise DataError("no power law fits these losses", fix="repeat the runs with more seeds")
    return now


def _errors(parameters: np.ndarray, x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted errors (points,) and their slopes in a, b and c (points, 3)."""
    a, b, c = parameters
    base = x + a
    power = base**-b
    slopes = np.stack([-b * power / base, -np.log(base) * power, np.ones_like(x)], axis=1)
    errors: np.ndarray = weights * (power + c - y)
    return errors, weights[:, None] * slopes


def optimal_amounts(
    laws: Mapping[str, PowerLaw], total: float, floor: float = FLOOR, caps: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The amounts x, floor <= x <= cap, with sum `total` that minimise the sum of the laws, by the KKT conditions.

    For a domain between its bounds -slope(x) equals one multiplier lambda, so x = (b / lambda)^(1 / (b + 1)) - a, and
    the sum falls with lambda: bisection finds the one that spends the budget.

    Raises:
        ConfigError: the floors are above the budget, or the caps below it.
    """
    names = list(laws)
    a, b = (np.array([getattr(laws[name], key) for name in names]) for key in "ab")
    if (b <= 0).any():
        raise DataError("more of it does not help", where=names[int(np.argmin(b))], fix="leave the domain out")
    low = np.full(len(names), float(floor))
    high = np.array([math.inf if caps is None else caps.get(name, math.inf) for name in names])
    if low.sum() > total * (1 + 1e-12) or (low > high).any():
        raise ConfigError(f"{len(names)} floors of {floor} do not fit a budget of {total}", where="floor")
    if high.sum() < total * (1 - 1e-12):
        raise ConfigError(f"the caps add up to {high.sum():.4g}, the budget is {total:.4g}", where="caps")

    def amounts(log_multiplier: float) -> np.ndarray:
        with np.errstate(over="ignore"):
            x: np.ndarray = np.clip(np.exp((np.log(b) - log_multiplier) / (b + 1)) - a, low, high)
        return x

    least, most = -700.0, 700.0  # log of the multiplier: amounts from beyond any cap down to the floor
    for _ in range(200):
        middle = (least + most) / 2
        least, most = (middle, most) if amounts(middle).sum() > total else (least, middle)
    return dict(zip(names, map(float, amounts(most)), strict=True))


@dataclass(frozen=True)
class Prediction:
    """Amounts at the target budget. `weights` feed a `Mixture`; `warnings` say which guard rails held."""

    amounts: dict[str, float]
    t: float
    warnings: list[str] = field(default_factory=list)
    spread: dict[str, float] = field(default_factory=dict)  # standard deviation of each share, where noise is known

    @property
    def weights(self) -> dict[str, float]:
        """Share of each domain."""
        total = math.fsum(self.amounts.values())
        return {name: amount / total for name, amount in self.amounts.items()}


def on_path(first: np.ndarray, second: np.ndarray, t: float) -> np.ndarray:
    """The amounts N(t) = N1 (N2 / N1)^t of the geometric path, element by element."""
    with np.errstate(over="ignore"):
        amounts: np.ndarray = first * (second / first) ** t
    return amounts


def predict(
    first: Mapping[str, float],
    second: Mapping[str, float],
    target: float,
    *,
    floored: Sequence[str] = (),
    saturated: Sequence[str] = (),
    caps: Mapping[str, float] | None = None,
    noise: Mapping[str, float] | None = None,
    max_t: float = MAX_T,
    max_rate: float = MAX_RATE,
) -> Prediction:
    """The amounts at the budget `target`, from the best amounts at two smaller budgets (§4, equation 4).

    Args:
        first: amount of each domain that is best at the smaller budget.
        second: the same at the larger one.
        target: the sum of amounts to predict for.
        floored: domains that sat on their floor at either budget. Their ratio says nothing, so they keep the share they
            have at the second budget.
        saturated: domains whose law was `saturated` at either budget. How fast they grow has not been measured either:
            they keep their share too.
        caps: data there is; what a capped domain leaves is shared by the others along the path.
        noise: relative error of the best amounts of each domain, from repeated runs. Gives `spread`.
        max_t: how far the path is followed. Beyond it the shares at `max_t` are kept.
        max_rate: the most a domain may grow, as a power of the growth of the total.

    Raises:
        ConfigError: budgets in the wrong order, or domains that differ.
        DataError: a domain shrinks while the budget grows, so there is no path.
    """
    if set(first) != set(second):
        raise ConfigError(f"domains differ: {sorted(set(first) ^ set(second))}", where="predict")
    names = list(first)
    n1, n2 = np.array([first[name] for name in names], float), np.array([second[name] for name in names], float)
    if not n1.sum() < n2.sum():
        raise ConfigError(
            f"budgets {n1.sum():.4g} and {n2.sum():.4g}", where="predict", fix="the second must be larger"
        )
    if target < n1.sum():
        raise ConfigError(f"the target {target:.4g} lies below the smaller budget", where="target")
    fixed = np.array([name in {*floored, *saturated} for name in names])
    if fixed.all():
        raise DataError(
            "every domain sat on its floor or had saturated", fix="lower the floor, or choose larger budgets"
        )
    if (shrinking := (n2 < n1) & ~fixed).any():
        name = names[int(np.flatnonzero(shrinking)[0])]
        raise DataError("its best amount falls as the budget grows", where=name, fix="repeat the runs with more seeds")
    path = _Path(fixed, np.array([math.inf if caps is None else caps.get(name, math.inf) for name in names]), max_rate)
    found, t = path.reach(n1, n2, target, max_t)
    if found.sum() < target * (1 - 1e-6):
        raise ConfigError(f"the caps hold {found.sum():.4g}, the target is {target:.4g}", where="caps")
    why = {name: "had saturated" for name in saturated} | {name: "sat on its floor" for name in floored}
    warnings = [f"{name} {why[name]}: its share is kept" for name, kept in zip(names, fixed, strict=True) if kept]
    for name, rate, kept in zip(names, path.rates(n1, n2), fixed, strict=True):
        if rate > max_rate and not kept:
            warnings.append(f"{name} grew like the total to the power {rate:.2f}: held at {max_rate}")
    if t > max_t:
        warnings.append(f"the target lies at t = {t:.2f} of the path: shares kept from t = {max_t}")
    spread: dict[str, float] = {}
    if noise is not None:
        errors = np.array([noise.get(name, 0.0) for name in names])
        shares = path.shares_under_noise(n1, n2, target, max_t, errors)
        spread = dict(zip(names, map(float, shares.std(axis=0)), strict=True))
        for name, share in zip(names, found / found.sum(), strict=True):
            if spread[name] > UNSURE * share:
                warnings.append(f"{name}: the noise leaves its share at {share:.3f} ± {spread[name]:.3f}")
    return Prediction(dict(zip(names, map(float, found), strict=True)), t, warnings, spread)


@dataclass(frozen=True)
class _Path:
    """The guarded path through the best amounts of two budgets; all arrays (domains,)."""

    fixed: np.ndarray  # domains that keep the share of the second budget
    cap: np.ndarray
    max_rate: float

    @staticmethod
    def rates(n1: np.ndarray, n2: np.ndarray) -> np.ndarray:
        """Growth of each domain, as a power of the growth of the total."""
        rates: np.ndarray = np.log(n2 / n1) / math.log(n2.sum() / n1.sum())
        return rates

    def reach(self, n1: np.ndarray, n2: np.ndarray, target: float, max_t: float) -> tuple[np.ndarray, float]:
        """The amounts with the sum `target` (less, where caps do not allow it), and the t at which they lie."""
        held = (n2.sum() / n1.sum()) ** np.minimum(self.rates(n1, n2), self.max_rate)
        start = np.where(self.fixed, n1, n2 / held)
        share = np.where(self.fixed, n2 / n2.sum(), 0)

        def amounts(t: float, budget: float) -> np.ndarray:
            bounded: np.ndarray = np.minimum(np.where(self.fixed, share * budget, on_path(start, n2, t)), self.cap)
            return bounded

        low, high = 0.0, 1.0
        while amounts(high, target).sum() < target and high < 1e6:
            high *= 2
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if amounts(middle, target).sum() < target else (low, middle)
        found = amounts(high, target)
        if high > max_t:
            free = ~self.fixed
            reached = amounts(max_t, target * float(on_path(start, n2, max_t)[free].sum() / found[free].sum()))
            found = np.minimum(reached / reached.sum() * target, self.cap)
        return found, high

    def shares_under_noise(
        self, n1: np.ndarray, n2: np.ndarray, target: float, max_t: float, noise: np.ndarray
    ) -> np.ndarray:
        """Shares at the target when the best amounts of both budgets are off by `noise`: (DRAWS, domains)."""
        random = rng(0, "autoscale")
        shares = np.empty((DRAWS, len(n1)))
        for row in shares:
            first, second = (n * np.exp(random.normal(0, noise)) for n in (n1, n2))
            first, second = first / first.sum() * n1.sum(), second / second.sum() * n2.sum()
            found, _ = self.reach(first, np.maximum(first, second), target, max_t)
            row[:] = found / found.sum()
        return shares
