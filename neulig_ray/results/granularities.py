"""What one merged model serves: every granularity with what it means. Their rules lie in `evaluation`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from neulig_ray.errors import unknown


@dataclass(frozen=True)
class Granularity:
    """One word of the results column `granularity`.

    `meaning`: what one merged model serves, for legends. `knows_task`: it uses the task of a test image, or
    that a batch has one task. `static`: one merged model serves everything, so that neither the experts nor
    a gate are kept. `order`: its place in tables, the smallest first.
    """

    name: str
    meaning: str
    knows_task: bool = False
    static: bool = False
    order: int = 100


_OWN: Final = (
    Granularity(
        "task", "one merged model for a task: the mean of beta over the task's val images", True, order=10
    ),
    Granularity("sample", "every image its own merged model", order=20),
    Granularity(
        "batch-first",
        "the first image's beta serves its whole batch of one task (the reference's rule)",
        knows_task=True,
        order=30,
    ),
    Granularity(
        "batch-mean", "the mean beta of a batch of one task serves that batch", knows_task=True, order=40
    ),
    Granularity("batch-first-mixed", "as batch-first, but a batch mixes all n tasks", order=50),
    Granularity("batch-mean-mixed", "as batch-mean, but a batch mixes all n tasks", order=60),
    Granularity(
        "global",
        "one static merged model for everything: the mean of the task betas",
        static=True,
        order=70,
    ),
)
OWN: Final = tuple(granularity.name for granularity in _OWN)
"""The package's own, which an experiment measures unless it names others."""
GRANULARITIES: Final = {granularity.name: granularity for granularity in _OWN}
"""Name -> granularity: the package's own and those of plugins, which `evaluation.granularity` adds."""


def granularity_of(name: str) -> Granularity:
    """The granularity of a results row; one of which only its name is known stands last."""
    return GRANULARITIES.get(name, Granularity(name, "", order=1000))


def check_granularity(name: str, kind: str = "granularity") -> None:
    """Raises InputError, with the near misses, for a name that neither the package nor a plugin declares."""
    if name not in GRANULARITIES:
        raise unknown(kind, name, GRANULARITIES, "--plugins adds a file that declares others.")


def in_order(names: Iterable[str]) -> list[str]:
    """The names as tables have them, each once."""
    return sorted(set(names), key=lambda name: (granularity_of(name).order, name))
