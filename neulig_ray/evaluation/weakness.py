"""Whether an expert has learned anything: on val, against its origin and against guessing."""

import math
from collections.abc import Sequence

import numpy as np


def weakness(expert: float, origin: float, labels: Sequence[int] | np.ndarray, classes: int) -> str:
    """What is wrong with an expert of these accuracies in percent on the images of `labels`; "" for nothing.

    At chance: not above naming the same class always (the most frequent one, at least one in `classes`) by
    two standard deviations of a binomial count.
    """
    found = []
    if expert <= origin:
        found.append(
            f"no better than its origin ({expert:.1f} % on val, the origin without training {origin:.1f} %)"
        )
    count = len(labels)
    guess = max(1 / classes, np.bincount(labels).max() / count)
    if expert <= 100 * (guess + 2 * math.sqrt(guess * (1 - guess) / count)):
        found.append(
            f"at chance ({expert:.1f} % on {count} val images, always the same class {100 * guess:.1f} %)"
        )
    return " and ".join(found)
