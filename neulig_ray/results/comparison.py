"""Any two rows of a results table, compared image by image."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from neulig_ray.errors import InputError
from neulig_ray.results.correctness import SIDES, Correctness, row_key
from neulig_ray.results.paired import Difference, difference
from neulig_ray.results.selection import chosen, described, words

ACCURACY: Final = "accuracy"  # the word that chooses merging or ensembling
_NO_EXPERTS: Final = ""  # a seed of experts that is unknown, or of none: zero-shot
Seed = tuple[str, str]  # of the experts, and the row's own
Bits = Callable[[str], Mapping[str, Correctness]]  # of an evaluation's rows, by its fingerprint


@dataclass(frozen=True)
class Side:
    """One of the two: the words of its rows, which accuracy, and its mean over tasks and seeds in percent."""

    rows: str
    side: str
    accuracy: float


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same images; `difference` is the first's accuracy minus the second's.

    `tasks` have equal weights. `seeds`: how many pairs of an experts' and an own seed were averaged, and
    resampled beside the images.
    """

    first: Side
    second: Side
    tasks: tuple[str, ...]
    seeds: int
    difference: Difference

    def __str__(self) -> str:
        found, sides = self.difference, (self.first, self.second)
        both = [word for word in self.first.rows.split() if word in self.second.rows.split()]
        over = [
            f"{count} {name}"
            for count, name in ((len(self.tasks), "tasks"), (self.seeds, "seeds"))
            if count > 1
        ]
        mean = f", the mean over {' and '.join(over)}" if over else ""
        known = found.low == found.low
        interval = f"95 % interval {found.low:+.2f} to {found.high:+.2f}" if known else "no interval"
        called = "the two differ" if found.significant else "no difference is shown"
        lines = {
            **{
                name: f"{side.accuracy:.2f} % {side.side}, "
                + " ".join(word for word in side.rows.split() if word not in both)
                for name, side in zip(("first", "second"), sides, strict=True)
            },
            "both": " ".join(both),
            "difference": f"{found.points:+.2f} points{mean}; {interval}",
            "sign test": f"p = {found.p:.2g}: {called}; the first does better on {found.wins} images, "
            f"the second on {found.losses}",
            "pairs": f"the same {found.images} images of {', '.join(self.tasks)}",
        }
        return "\n".join(f"{name:<11} {text}".rstrip(" ,") for name, text in lines.items())


def compare(
    table: pd.DataFrame, bits: Bits, first: str | Mapping[str, Any], second: str | Mapping[str, Any]
) -> Comparison:
    """Two rows of a table by their words, `method=ligand alignment=sup granularity=task task=digits`.

    Without `task` (`seed`, `expert_seed`, `order_seed`) the mean over all that there are is compared; orders
    of batches are averaged image by image. Pairs share the task, the experts' seed and the own seed; a side
    with one own seed for some experts stands beside all of the other's. `accuracy=merging|ensembling` chooses
    between a row's two; merging where there is one. Raises InputError for words that choose no row or
    several, and for rows that are no pairs: of other tasks, seeds or images, or measured by a version that
    kept no bits.
    """
    one, other = _Chosen.of(table, bits, first), _Chosen.of(table, bits, second)
    if one.tasks != other.tasks:
        raise InputError(
            f"no pairs: the first is of {', '.join(one.tasks)}, the second of {', '.join(other.tasks)}; "
            "name one that both have, task=NAME, in each"
        )
    for task in one.tasks:
        _same_images(task, one.images[task], other.images[task])
    seeds = _paired_seeds(one.seeds, other.seeds)
    pairs = [
        [np.stack([part.right[task][places[side]] for _, *places in seeds]) for task in one.tasks]
        for side, part in enumerate((one, other))
    ]
    found = difference(*pairs, groups=[group for group, *_ in seeds])
    return Comparison(one.shown, other.shown, one.tasks, len(seeds), found)


def _paired_seeds(first: Sequence[Seed], second: Sequence[Seed]) -> list[tuple[int, int, int]]:
    """For each pair of seeds: a number of its experts' seed, the places in first and second."""
    one, other = _by_experts(first), _by_experts(second)
    if set(one) == {_NO_EXPERTS}:
        one = dict.fromkeys(other, one[_NO_EXPERTS])
    elif set(other) == {_NO_EXPERTS}:
        other = dict.fromkeys(one, other[_NO_EXPERTS])
    if one.keys() != other.keys():
        raise _no_pairs("seeds of experts", one, other, "expert_seed")
    pairs = []
    for group, expert in enumerate(one):
        places = one[expert], other[expert]
        owns = [
            [seeds[place][1] for place in part] for seeds, part in zip((first, second), places, strict=True)
        ]
        if owns[0] != owns[1] and min(map(len, owns)) > 1:
            raise _no_pairs("seeds", owns[0], owns[1], "seed")
        count = max(map(len, owns))
        both = [part * count if len(part) == 1 else part for part in places]  # one: the same answers for each
        pairs += [(group, i, j) for i, j in zip(*both, strict=True)]
    return pairs


def _by_experts(seeds: Sequence[Seed]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place, (expert, _) in enumerate(seeds):
        found.setdefault(expert, []).append(place)
    return found


def _no_pairs(what: str, first: Iterable[str], second: Iterable[str], column: str) -> InputError:
    return InputError(
        f"no pairs: the first has {what} {', '.join(first)}, the second {', '.join(second)}; "
        f"name one of each, {column}=N"
    )


@dataclass(frozen=True)
class _Chosen:
    shown: Side
    tasks: tuple[str, ...]
    seeds: tuple[Seed, ...]
    images: Mapping[str, bytes]  # of each task
    right: Mapping[str, np.ndarray]  # of each task (seeds, images), means over the orders

    @classmethod
    def of(cls, table: pd.DataFrame, bits: Bits, selection: str | Mapping[str, Any]) -> "_Chosen":
        given = words(selection, [ACCURACY])
        side = given.pop(ACCURACY, "")
        rows = chosen(table, given)
        shown = described(rows)
        has = [name for name in SIDES if rows[f"{name}_accuracy"].notna().all()]
        side = side or next(iter(has), SIDES[0])
        if side not in has:
            raise InputError(f"{ACCURACY}={side}: {shown} has {' and '.join(has) or 'no accuracy'} alone")
        images: dict[str, bytes] = {}
        by_seed: dict[str, dict[Seed, list[np.ndarray]]] = {}
        for row in rows.to_dict("records"):
            found = _bits_of(row, bits)
            right = found.right(side)
            if right is None or not np.isclose(100 * right.mean(), row[f"{side}_accuracy"], atol=1e-6):
                raise InputError(f"the bits of {shown} are not those of its accuracies; run it again")
            _same_images(row["task"], images.setdefault(row["task"], found.images), found.images)
            expert = _NO_EXPERTS if row["n"] == 0 or pd.isna(row["expert_seed"]) else str(row["expert_seed"])
            seed = (expert, str(row["seed"]))
            by_seed.setdefault(row["task"], {}).setdefault(seed, []).append(right)
        tasks = tuple(sorted(by_seed))
        seeds = tuple(sorted(by_seed[tasks[0]]))
        if any(sorted(own) != list(seeds) for own in by_seed.values()):
            raise InputError(f"{shown} has not the same seeds on every task: name one, seed=N")
        right_of = {
            task: np.stack([np.mean(by_seed[task][seed], axis=0) for seed in seeds]) for task in tasks
        }
        mean = 100 * float(np.mean([part.mean() for part in right_of.values()]))
        return cls(Side(shown, side, mean), tasks, seeds, images, right_of)


def _bits_of(row: Mapping[Any, Any], bits: Bits) -> Correctness:
    try:
        return bits(row["fingerprint"])[row_key(row)]
    except (FileNotFoundError, KeyError):
        raise InputError(
            f"nothing tells which images {row['method']} has right on {row['task']}: its evaluation "
            f"{row['fingerprint']} has no bits beside the results. The same run writes them again; where it "
            "warns that the evaluation is of a version that kept no bits, remove its folder in "
            "artifacts/evaluation first"
        ) from None


def _same_images(task: str, first: bytes, second: bytes) -> None:
    if first != second:
        counts = [int(np.unpackbits(np.frombuffer(bits, np.uint8)).sum()) for bits in (first, second)]
        raise InputError(
            f"no pairs: the first looks at {counts[0]} images of {task}, the second at {counts[1]}, and they "
            "are not the same (granularity `sample` looks at evaluation.sample_images of them)"
        )
