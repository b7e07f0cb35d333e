"""References: single models that the merged ones are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from neulig_ray.merging.declare.method import Decorator, Kind, PredictingMethod, declare

Single = Literal["expert", "origin", "joint"]


@dataclass(frozen=True)
class ReferenceMethod(PredictingMethod):
    """`predict` takes the embeddings (N, d) of one model.

    `of`: a task's own expert, where it started, or one network fine-tuned on all tasks of a combination.
    """

    kind: ClassVar[Kind] = "reference"

    of: Single = "expert"


def reference(
    name: str, *, paper: str, version: int = 1, of: Single = "expert", needs: Sequence[str] = ()
) -> Decorator[ReferenceMethod]:
    """Declare a single model to compare with: a function of its embeddings (N, d) and the task's head (C, d).

    `of`: whose embeddings these are: the task's own `expert`'s, its `origin`'s, or those of the `joint`
    network that an experiment fine-tunes on all tasks of a combination. Its options are keyword-only
    parameters. It returns the logits (N, C).
    """
    return declare(ReferenceMethod, **locals())
