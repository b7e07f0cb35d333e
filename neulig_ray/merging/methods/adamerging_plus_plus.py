"""AdaMerging++: AdaMerging on task vectors that TIES has trimmed and made agree."""

import torch

from neulig_ray.merging import Density, trained
from neulig_ray.merging.adaptation import AdaptOn, BatchSize, LearningRate, Steps
from neulig_ray.merging.coefficients import Clamp, Init, Level, learn_coefficients, task_vectors
from neulig_ray.merging.elections import elect, hold_election
from neulig_ray.merging.inputs import MergeInputs
from neulig_ray.merging.models import Models
from neulig_ray.merging.task_vectors import TaskVectors
from neulig_ray.merging.trimming import drop
from neulig_ray.weights.sources import StateSource


@trained("adamerging-plus-plus", paper="arXiv 2310.02575 (ICLR 2024)", needs=("base", "unlabelled images"))
def adamerging_plus_plus(
    bench: MergeInputs,
    *,
    density: Density = 0.2,
    level: Level = "layer",
    steps: Steps = 500,
    batch_size: BatchSize = 16,
    learning_rate: LearningRate = 1e-3,
    init: Init = 0.3,
    clamp: Clamp = True,
    adapt_on: AdaptOn = "val",
) -> dict[str, torch.Tensor]:
    """AdaMerging on what TIES keeps of each task vector: large entries that have the elected sign.

    The fraction `density` is kept of each whole task vector, the sign of an entry is that of the trimmed
    vectors' sum, and each task's entries of the other sign become zero. The vectors stay apart, each with
    coefficients of its own; they start as TIES with aggregate "sum" and the scaling `init`. The rest is as
    for `adamerging`.
    """
    vectors = agreeing(task_vectors(bench), bench, density)
    coefficients = learn_coefficients(
        "adamerging-plus-plus",
        bench,
        vectors,
        level=level,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        init=init,
        clamp=clamp,
    )
    return vectors.state(coefficients)


def agreeing(vectors: TaskVectors, bench: MergeInputs, density: float) -> TaskVectors:
    """The task vectors trimmed to `density` of each, without the entries whose sign is not the elected one.

    Trims as TIES does by default, ties of magnitude and sign included. Overwrites the vectors' deltas.
    """
    assert bench.base is not None
    experts = {
        label: StateSource({name: t for name, t in state.items() if name in vectors.deltas})
        for label, state in bench.experts.items()
    }
    models = Models(experts, StateSource(bench.base))
    election = hold_election(models, density)
    for name, deltas in vectors.deltas.items():
        signs = elect(drop(deltas, election.cutoffs.of(name)), election.tie)
        deltas.mul_(deltas * signs > 0)
    return vectors
