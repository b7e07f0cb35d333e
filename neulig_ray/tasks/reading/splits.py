"""Splits that the task's name and the seed decide, and nothing else."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from neulig_ray.seeds import stable_generator
from neulig_ray.tasks._base import Split
from neulig_ray.tasks.drawing.raster import Labels

Draw = Callable[[np.random.Generator, Labels], npt.NDArray[np.uint8]]


def balanced(rng: np.random.Generator, count: int, num_classes: int) -> Labels:
    """Labels (count,) in random order; any two classes differ by at most one in number."""
    return rng.permutation(np.arange(count, dtype=np.int64) % num_classes)


def rendered(task: str, seed: int, num_classes: int, draw: Draw, train: int = 3000) -> dict[str, Split]:
    """Balanced splits of `train`, 500 and 600 pictures, each drawn from a generator of its own."""
    splits = {}
    for name, count in {"train": train, "val": 500, "test": 600}.items():
        rng = stable_generator(task, name, seed)
        labels = balanced(rng, count, num_classes)
        splits[name] = Split(draw(rng, labels), labels)
    return splits


def stratified(task: str, seed: int, labels: Labels, counts: Mapping[str, int]) -> dict[str, Labels]:
    """Disjoint index arrays, `counts` of them, in which the classes have (nearly) the shares of the whole.

    Every class is shuffled and its members are spread evenly over one line, which is then cut.
    """
    rng = stable_generator(task, "splits", seed)
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        position[members] = (np.arange(len(members)) + rng.random()) / len(members)
    line = np.argsort(position, kind="stable")
    ends = np.cumsum(list(counts.values()))
    assert ends[-1] <= len(labels), f"{ends[-1]} images asked of {len(labels)}"
    return {
        name: rng.permutation(line[end - count : end])
        for (name, count), end in zip(counts.items(), ends, strict=True)
    }


def with_every_class(
    rows: Mapping[str, Labels], labels: Labels, *, small: str, large: str
) -> dict[str, Labels]:
    """`rows` after `small` has got one image of each class that it lacks and `large` has two or more of.

    Classes of a few images would otherwise miss a share of a tenth or a fifth by chance.
    """
    have = np.bincount(labels[rows[small]], minlength=int(labels.max(initial=0)) + 1)
    moved = []
    for label in np.unique(labels[rows[large]]):
        members = rows[large][labels[rows[large]] == label]
        if not have[label] and len(members) > 1:
            moved.append(members[0])
    if not moved:
        return dict(rows)
    kept = rows[large][~np.isin(rows[large], moved)]
    return {**rows, small: np.sort(np.concatenate([rows[small], moved])), large: np.sort(kept)}
