"""References: single models that the merged ones are compared with."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from neulig_ray.merging.declare.method import Decorator, Kind, PredictingMethod, declare

Single = Literal["expert", "origin"]


@dataclass(frozen=True)
class ReferenceMethod(PredictingMethod):
    """`predict` takes the embeddings (N, d) of one model. `of`: a task's own expert, or where it started."""

    kind: ClassVar[Kind] = "reference"

    of: Single = "expert"


def reference(
    name: str, *, paper: str, version: int = 1, of: Single = "expert"
) -> Decorator[ReferenceMethod]:
    """Declare a single model to compare with: a function of its embeddings (N, d) and the task's head (C, d).

    `of`: whose embeddings these are, the task's own `expert`'s or its `origin`'s. Its options are
    keyword-only parameters. It returns the logits (N, C).
    """
    return declare(ReferenceMethod, **locals())
