"""Which models are combined: collaborators, combinations, cells. Pure functions of the configuration."""

import functools
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from neulig_ray.errors import InputError
from neulig_ray.experiment.config import Experiment
from neulig_ray.ligand.data import Combination
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.origin_source import parse_origin

_MOST_LISTED = 200_000  # more combinations than this are sampled without listing them all


def collaborator(task: str, origin: str) -> str:
    """The key of an expert among its arch's: "task@origin"."""
    return f"{task}@{origin}"


def origin_of(key: str) -> str:
    return key.rpartition("@")[2]


def origin_name(given: str) -> str:
    """How an origin is called in keys and columns: a file by its stem, a hub's model by its last part."""
    return parse_origin(given).name


def origins_of(experiment: Experiment, arch: str) -> list[str]:
    """The origins of one arch among the experiment's: an entry ARCH:ORIGIN is of that arch alone.

    Raises InputError where none is left, and where two have one name.
    """
    found = []
    for given in experiment.origins:
        head, colon, place = given.partition(":")
        if not (colon and _is_arch(head)):
            found.append(given)
        elif head == arch:
            found.append(place)
    if not found:
        raise InputError(
            f"arch {arch!r} has no origin: all of {', '.join(experiment.origins)} are of other archs; "
            f"add one to --origins ({arch}:openai is of this arch alone)"
        )
    names = [origin_name(given) for given in found]
    if len(set(names)) != len(names):
        raise InputError(
            f"origins {experiment.origins}: two of them are called {max(names, key=names.count)!r}; "
            "rename one"
        )
    return found


@functools.lru_cache(maxsize=64)
def _is_arch(name: str) -> bool:
    try:
        ARCHS[name]
    except InputError:
        return False
    return True


@dataclass(frozen=True)
class Group:
    """All combinations of one n over one arch and one origin, or over several origins (mixed)."""

    arch: str
    origin: str
    n: int
    combinations: tuple[Combination, ...]


def groups(experiment: Experiment) -> list[Group]:
    """Every (arch, origin, n) of the experiment with its combinations."""
    e = experiment
    found = []
    for arch, n in itertools.product(e.archs, e.n):
        named = [origin_name(given) for given in origins_of(e, arch)]
        for origin in named:
            pool = [
                tuple(collaborator(t, origin) for t in c) for c in itertools.combinations(sorted(e.tasks), n)
            ]
            found.append(
                Group(arch, origin, n, _draw(pool, e.combinations, f"{e.drawn_by}/{n}/{len(e.tasks)}"))
            )
        if n in e.mixed_origins and len(named) > 1:
            name = "+".join(named)
            found.append(
                Group(arch, name, n, _draw(_mixed(e, named, n), e.combinations, f"{e.drawn_by}/{n}/mixed"))
            )
    return found


def _mixed(e: Experiment, named: Sequence[str], n: int) -> list[Combination]:
    pool: list[Combination] = []
    for tasks in itertools.combinations(sorted(e.tasks), n):
        for origins in itertools.product(named, repeat=n):
            if len(set(origins)) > 1:
                pool.append(tuple(map(collaborator, tasks, origins)))
            if len(pool) >= _MOST_LISTED:
                return pool
    return pool


def _draw(pool: Sequence[Combination], most: int | None, seed: str) -> tuple[Combination, ...]:
    """At most `most` of the pool, drawn so that each collaborator occurs about equally often."""
    if most is None or most >= len(pool):
        return tuple(sorted(pool))
    shuffled = list(pool)
    random.Random(seed).shuffle(shuffled)  # noqa: S311 - a reproducible draw, not a secret
    used: Counter[str] = Counter()
    chosen: list[Combination] = []
    while len(chosen) < most:
        best = min(shuffled, key=lambda c: (sum(used[k] for k in c), max(used[k] for k in c)))
        shuffled.remove(best)
        used.update(best)
        chosen.append(best)
    return tuple(sorted(chosen))
