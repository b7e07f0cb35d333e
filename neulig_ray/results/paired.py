"""Whether two systems differ, from what each got right on the same images: a bootstrap and a sign test."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

RESAMPLES: Final = 10_000
LEVEL: Final = 0.95
SIGNIFICANT: Final = 0.05
_MOST_DRAWN: Final = 2**22  # numbers of one draw: 32 MiB
NAN: Final = float("nan")


@dataclass(frozen=True)
class Difference:
    """First minus second system, over images that both saw.

    `points`: the difference of the accuracies in percentage points, the mean over tasks; `low`, `high`: its
    interval. `wins`, `losses`: images, of all tasks together, on which the first does better, or worse (with
    several seeds: on their mean); `p`: of the sign test on them. `images` were compared, `left_out` had NaN.
    """

    points: float
    low: float
    high: float
    wins: int
    losses: int
    p: float
    images: int
    left_out: int = 0

    @property
    def significant(self) -> bool:
        """Whether the sign test tells the two apart at the 5 % level, and the interval does not hold 0."""
        return self.p < SIGNIFICANT and not self.low <= 0 <= self.high


def difference(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    *,
    groups: Sequence[int] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Two systems compared on the images of one or several tasks: an array (N,) or (S, N) for each task.

    Values are 0 or 1 (wrong, right), or means of such; S seeds, the same for all tasks, and `groups` (S,) of
    them as `bootstrap` has it. An image for which
    any seed of either system has NaN is left out, and counted as such. Without images nothing is known: all
    is NaN. Raises ValueError for shapes that are no pairs.
    """
    pairs, left_out = [], 0
    for one, other in zip(first, second, strict=True):
        if np.shape(one) != np.shape(other) or np.ndim(one) not in (1, 2):
            raise ValueError(f"no pairs: shapes {np.shape(one)} and {np.shape(other)}")
        found = np.atleast_2d(np.asarray(one, dtype=float) - np.asarray(other, dtype=float))
        whole = ~np.isnan(found).any(0)
        left_out += int((~whole).sum())
        pairs.append(found[:, whole])
    images = sum(part.shape[1] for part in pairs)
    low, high = bootstrap(pairs, groups=groups, resamples=resamples, seed=seed)
    by_image = np.concatenate([part.mean(0) for part in pairs]).round(9) if pairs else np.empty(0)
    wins, losses = int((by_image > 0).sum()), int((by_image < 0).sum())
    known = all(part.shape[1] for part in pairs) and images
    return Difference(
        points=100.0 * float(np.mean([part.mean() for part in pairs])) if known else NAN,
        low=low,
        high=high,
        wins=wins,
        losses=losses,
        p=sign_test(wins, losses) if images else NAN,
        images=images,
        left_out=left_out,
    )


def bootstrap(
    differences: Sequence[np.ndarray],
    *,
    groups: Sequence[int] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[float, float]:
    """The percentile interval, in percentage points, of the mean difference of paired systems.

    `differences`: for each task an array (S, N) or (N,), first minus second system, in [-1, 1] and without
    NaN. The mean is over tasks: each task's images are resampled by themselves (strata). Both systems keep
    the same images in a resample, so that what makes an image hard for both cancels. With several seeds there
    are two levels: seeds are resampled, the same for all tasks, and, independently, images, the same for all
    seeds, since every seed is measured on the same images. `groups` (S,): which experts' seed each is of;
    where there are several, these are resampled, and for each that is drawn the seeds of its group.

    The interval is [NaN, NaN] where a task has fewer than two images, and has no width where all differences
    are the same: that says nothing of images that were not seen. Few seeds tell little of their spread: for S
    seeds that level is too narrow by about sqrt((S - 1) / S).

    Sources: B. Efron and R. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13 (percentile
    intervals) and 8 (several samples); P. Koehn, Statistical Significance Tests for Machine Translation
    Evaluation, EMNLP 2004 (pairs of systems); A. Owen, The pigeonhole bootstrap, Annals of Applied Statistics
    2007 (two crossed levels).
    """
    tasks = [np.atleast_2d(part) for part in differences]
    if not tasks or any(part.shape[1] < 2 for part in tasks):
        return NAN, NAN
    seeds = tasks[0].shape[0]
    if any(part.shape[0] != seeds for part in tasks):
        raise ValueError(f"every task needs the same seeds: {[part.shape[0] for part in tasks]}")
    generator = np.random.default_rng(seed)
    shares = _seed_shares(list(groups), seeds, resamples, generator)
    means = sum(_resampled(part, shares, generator) for part in tasks) / len(tasks)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return 100.0 * float(low), 100.0 * float(high)


def _seed_shares(groups: list[int], seeds: int, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """How much each seed weighs in each resample (B, S); the seeds of a single group are drawn one by one."""
    members = [[place for place in range(seeds) if groups[place] == group] for group in dict.fromkeys(groups)]
    if len(members) < 2:
        members = [[place] for place in range(seeds)]
    times = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), size=resamples)
    counts = np.empty((resamples, seeds))
    for own, drawn in zip(members, times.T, strict=True):
        if len(own) > 1:
            counts[:, own] = generator.multinomial(drawn * len(own), np.full(len(own), 1 / len(own)))
        else:
            counts[:, own[0]] = drawn
    return counts / counts.sum(1, keepdims=True)


def _resampled(task: np.ndarray, shares: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Means (B,) of a task's differences (S, N), its images resampled, its seeds weighed by `shares` (B, S).

    Images whose differences are the same are drawn together: how often each kind comes is multinomial.
    """
    kinds, counts = np.unique(task, axis=1, return_counts=True)
    images = task.shape[1]
    step = max(1, _MOST_DRAWN // len(counts))
    means = []
    for start in range(0, len(shares), step):
        part = shares[start : start + step]
        drawn = generator.multinomial(images, counts / images, size=len(part)) / images
        means.append(((drawn @ kinds.T) * part).sum(1))
    return np.concatenate(means)


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided p that so uneven a split of discordant pairs, or a more uneven one, is chance.

    Pairs on which both systems are right, or both wrong, do not count; without discordant pairs p is 1. On
    two systems' right and wrong answers this is McNemar's test in its exact form (Q. McNemar, Psychometrika
    1947; the binomial one of J. Dixon and A. Mood, JASA 1946).
    """
    pairs, fewer = wins + losses, min(wins, losses)
    if wins == losses:
        return 1.0
    k = np.arange(1, fewer + 1)
    logarithms = np.concatenate([[0.0], np.cumsum(np.log((pairs - k + 1) / k))]) - pairs * np.log(2)
    return min(1.0, 2.0 * float(np.exp(logarithms).sum()))
