"""A model as another one calls its tensors: under other names, with some left out or lent by others."""

from collections.abc import Mapping

import torch

from neulig_ray.weights.sources import Source
from neulig_ray.weights.tensor_file import Spec


class View:
    """Tensors of one or more sources, each under the name that it has here."""

    def __init__(self, places: Mapping[str, tuple[Source, str]]) -> None:
        """places: name -> (the source, what the tensor is called there)."""
        self._places = dict(places)
        self.specs: Mapping[str, Spec] = {
            name: source.specs[there] for name, (source, there) in self._places.items()
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        source, there = self._places[name]
        return source.read(there, start, stop)

    def read_into(self, out: torch.Tensor, name: str, start: int = 0) -> None:
        source, there = self._places[name]
        source.read_into(out, there, start)
