"""RegMean: every linear map as near as it can be to all experts' maps, each on its own inputs."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from neulig_ray.errors import InputError
from neulig_ray.merging import Tensors, measured
from neulig_ray.merging.grams import TRANSPOSED, belongs, gram_key, measure_grams
from neulig_ray.merging.inputs import Images, batches
from neulig_ray.merging.models import Models
from neulig_ray.merging.regression import BATCH, Examples, OffDiagonal, regress


def measure(
    tower: nn.Module, images: Images, head: torch.Tensor, seed: int = 0, *, examples: Examples = 256
) -> dict[str, torch.Tensor]:
    """The Gram matrices of an expert's linear maps over `examples` images of its own task."""
    return measure_grams(tower, batches(images, BATCH, count=examples, seed=seed))


def _check(models: Models) -> None:
    for label, source in zip(models.labels, models.statistics, strict=True):
        keys = {name: gram_key(source.specs, name) for name in models.names}
        if not any(keys.values()):
            raise InputError(
                f"regmean: the statistics of {label!r} have no Gram matrix of its tensors, but "
                f"{', '.join([*source.specs][:3])}: they are of another method or architecture"
            )
        for name, key in keys.items():
            shape = models.specs[name].shape
            if key is not None and not belongs(gram := source.specs[key].shape, key, shape):
                raise InputError(
                    f"regmean: the statistics of {label!r} have {key!r} as {gram}, no Gram matrix of what "
                    f"{name!r}, {shape}, is given: they are of another method or architecture"
                )


@measured("regmean", paper="arXiv 2212.09849 (ICLR 2023)", measure=measure, precondition=_check)
def regmean(
    tensors: Tensors,
    *,
    name: str,
    statistics: Sequence[Mapping[str, torch.Tensor]],
    offdiagonal: OffDiagonal = 0.9,
) -> torch.Tensor:
    """Every linear map by regression on what the experts' own maps give for their own inputs.

    W^T = (sum_t G_t)^-1 sum_t G_t W_t^T, with G_t = X_t^T X_t / rows of the inputs of expert t's map, over
    unlabelled train images of its task, and the entries off the diagonal times `offdiagonal`. That holds for
    all linear maps: the MLPs, attention's fused projections (query, key and value share their inputs) and its
    output projection, `proj`, patch embeddings, and convolutions on unfolded patches. Other implementations
    average all but the nn.Linear modules that are called. Biases, gains and embeddings are averaged.

    0.9 is the factor in the configurations of the authors' experiments; FusionBench takes 0.95. Rows are
    counted, so that all tasks weigh the same.
    """
    key = gram_key(statistics[0], name)
    if key is None:
        return torch.stack(list(tensors)).mean(0)
    grams = (known[key] for known in statistics)
    return regress(tensors, grams, offdiagonal, transposed=key.endswith(TRANSPOSED))
