"""The settings that a search tries: the reference's first, then a seeded quasi-random list."""

import math
from dataclasses import dataclass

from neulig_ray.experiment.config import Search

REFERENCE = (1e-3, 0.01)  # the reference's learning rate and alignment weight (1 / its --scaling 100)


@dataclass(frozen=True)
class Setting:
    """A pair to train with. `alignment_weight` is alpha of alpha L_a + L_b."""

    learning_rate: float
    alignment_weight: float


def settings(search: Search, seed: int) -> list[Setting]:
    """`search.trials` settings, a function of the search's space and the seed alone.

    A scrambled Sobol sequence covers (log learning rate, log alignment weight, whether the weight is 0)
    more evenly than random draws, and does not depend on results: trials may run in any order.
    """
    import torch

    found = [Setting(*REFERENCE)]
    sobol = torch.quasirandom.SobolEngine(3, scramble=True, seed=seed)  # type: ignore[no-untyped-call]
    points = sobol.draw(search.trials, dtype=torch.float64)
    for rate, weight, zero in points.tolist():
        alignment = 0.0 if zero < search.zero_alignment else _between(*search.alignment_weight, weight)
        found.append(Setting(_between(*search.learning_rate, rate), alignment))
    return found[: search.trials]


def _between(low: float, high: float, fraction: float) -> float:
    """Log-uniform, to four digits: a setting can be read, and written back, as it was."""
    return float(f"{math.exp(math.log(low) + fraction * (math.log(high) - math.log(low))):.3e}")
