"""Model Breadcrumbs: neither the smallest nor the largest changes."""

from dataclasses import dataclass
from typing import Annotated

import torch

from neulig_ray.merging import TENTHS, About, Density, Scaling, streamed, tuned
from neulig_ray.merging.models import Models
from neulig_ray.merging.trimming import Cutoffs, drop, tensor_order_statistics

Outliers = Annotated[
    float,
    About("fraction of each task vector's entries, the largest, that is dropped", at_least=0, at_most=1),
]


@dataclass(frozen=True)
class Band:
    """Entries are kept whose magnitude is above `low` and not above `high`."""

    low: Cutoffs
    high: Cutoffs


def kept_ranks(size: int, density: float, outliers: float) -> range:
    """The ranks that are kept of a tensor's magnitudes, counted from 0 for the smallest.

    The largest are dropped first, then the smallest until floor(density size) are left; fewer of the largest
    where there would not be enough left.
    """
    kept = int(density * size)
    stop = max(size - int(outliers * size), kept)
    return range(stop - kept, stop)


def _survey(models: Models, *, density: Density = 0.1, outliers: Outliers = 0.01) -> Band:
    def ends(size: int) -> tuple[int, ...]:
        ranks = kept_ranks(size, density, outliers)
        return (ranks[0], ranks[-1]) if ranks else ()

    low, high = {}, {}
    for name, found in tensor_order_statistics(models, ends).items():
        if found.numel():
            low[name] = tuple(torch.nextafter(found[:, 0], torch.tensor(-1.0)).tolist())
            high[name] = tuple(found[:, 1].tolist())
    everything = (float("inf"),) * models.n  # dropped, of tensors so small that no entry is kept
    return Band(Cutoffs(everything, low), Cutoffs(everything, high))


@streamed("breadcrumbs", paper="arXiv 2312.06795", elementwise=True, survey=_survey)
def breadcrumbs(
    tensors: torch.Tensor,
    *,
    base: torch.Tensor,
    name: str,
    survey: Band,
    scaling: Scaling = tuned(0.3, TENTHS),
) -> torch.Tensor:
    """theta_0 + scaling * sum of the task vectors, without each tensor's smallest and largest entries.

    The largest `outliers` of a tensor go, then the smallest, until `density` is left. In small tensors, where
    the fraction of outliers is less than one entry, none is an outlier; mergekit drops all of such a tensor's
    task vector. Equal magnitudes at an end are all kept.
    """
    deltas = torch.sub(tensors, base)
    outliers = drop(deltas.clone(), survey.high.of(name))
    kept = drop(deltas.sub_(outliers), survey.low.of(name))
    return torch.add(base, kept.sum(0), alpha=scaling)
