"""Collaborators side by side as flat vectors, and the model that a beta merges them into."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch

from neulig_ray.arrays import shared_tensor
from neulig_ray.errors import unknown
from neulig_ray.merging.models import is_batchnorm_statistic
from neulig_ray.weights.compatibility import check_specs
from neulig_ray.weights.fitting import check_integers
from neulig_ray.weights.sources import State, StateSource


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in a flat vector."""

    name: str
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        return self.start + prod(self.shape)


def _layout(state: State) -> tuple[Entry, ...]:
    """The floating tensors, parameters first and BatchNorm statistics last."""
    names = sorted((n for n in state if state[n].is_floating_point()), key=is_batchnorm_statistic)
    entries, start = [], 0
    for name in names:
        entries.append(Entry(name, tuple(state[name].shape), start))
        start = entries[-1].stop
    return tuple(entries)


@dataclass(frozen=True)
class ExpertStack:
    """n models of one architecture: `vectors` maps each one's key to its floating tensors, flat float32 (P,).

    The first `num_parameters` numbers of a vector are parameters, the rest BatchNorm statistics. Integer
    tensors (BatchNorm's counters) stand apart in `counters`. Vectors may lie in shared read-only memory.
    """

    vectors: Mapping[str, torch.Tensor]
    layout: tuple[Entry, ...]
    counters: Mapping[str, State]

    @classmethod
    def from_states(cls, states: Mapping[str, State]) -> "ExpertStack":
        """Copy the states; raises InputError, naming two of them, when their tensors do not correspond."""
        sources = {key: StateSource(state) for key, state in states.items()}
        check_specs({key: source.specs for key, source in sources.items()})
        check_integers(sources)
        layout = _layout(next(iter(states.values())))
        vectors = {
            key: torch.cat([state[e.name].detach().reshape(-1).to(torch.float32) for e in layout])
            for key, state in states.items()
        }
        counters = {
            key: {name: t.detach().clone() for name, t in state.items() if not t.is_floating_point()}
            for key, state in states.items()
        }
        return cls(vectors, layout, counters)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> "ExpertStack":
        """The inverse of `to_arrays`, without copying the vectors."""
        return cls(
            {key: shared_tensor(vector) for key, vector in arrays["vectors"].items()},
            tuple(Entry(*entry) for entry in arrays["layout"]),
            {
                key: {name: shared_tensor(array) for name, array in counters.items()}
                for key, counters in arrays["counters"].items()
            },
        )

    def to_arrays(self) -> dict[str, Any]:
        """numpy arrays and plain values, for an object store that shares numpy memory."""
        return {
            "vectors": {key: vector.cpu().numpy() for key, vector in self.vectors.items()},
            "layout": [(e.name, e.shape, e.start) for e in self.layout],
            "counters": {
                key: {name: tensor.cpu().numpy() for name, tensor in counters.items()}
                for key, counters in self.counters.items()
            },
        }

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.vectors)

    @property
    def size(self) -> int:
        """P, the numbers in a vector."""
        return self.layout[-1].stop if self.layout else 0

    @property
    def num_parameters(self) -> int:
        return sum(e.stop - e.start for e in self.layout if not is_batchnorm_statistic(e.name))

    @property
    def has_batchnorm(self) -> bool:
        return self.num_parameters < self.size

    def select(self, keys: Sequence[str]) -> "ExpertStack":
        """The stack of some of the models in the given order, sharing memory."""
        for key in keys:
            if key not in self.vectors:
                raise unknown("collaborator", key, self.vectors)
        return replace(
            self,
            vectors={key: self.vectors[key] for key in keys},
            counters={key: self.counters[key] for key in keys},
        )

    def to(self, device: str | torch.device) -> "ExpertStack":
        return replace(
            self,
            vectors={key: vector.to(device) for key, vector in self.vectors.items()},
            counters={
                key: {name: t.to(device) for name, t in counters.items()}
                for key, counters in self.counters.items()
            },
        )

    def state(self, key: str) -> dict[str, torch.Tensor]:
        """One model's state, as views: not to be written to."""
        return {**self.views(self.vectors[key]), **self.counters[key]}

    def combine(self, beta: torch.Tensor, out: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """The merged state theta(beta) = sum_i beta_i theta_i, BatchNorm statistics included (paper's rule).

        beta: (n,). Counters are the first model's. The tensors are views of one flat vector: `out` (P,)
        where it is given, and then the next call with the same `out` overwrites them.
        """
        if beta.shape != (len(self.vectors),):
            raise ValueError(f"beta {tuple(beta.shape)} for {len(self.vectors)} models")
        flat = torch.empty_like(next(iter(self.vectors.values()))) if out is None else out
        flat.zero_()
        for vector, weight in zip(self.vectors.values(), beta.tolist(), strict=True):
            if weight != 0:
                flat.add_(vector, alpha=weight)
        return {**self.views(flat), **{n: t.clone() for n, t in self.counters[self.keys[0]].items()}}

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """The floating tensors of a flat vector (P,), by name."""
        return {e.name: flat[e.start : e.stop].view(e.shape) for e in self.layout}
