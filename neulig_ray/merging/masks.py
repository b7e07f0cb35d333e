"""Models that keep one shared task vector and a bit mask for each task: TALL masks, EMR."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from neulig_ray.errors import unknown
from neulig_ray.merging.models import Piece
from neulig_ray.weights.sources import Sink, Source
from neulig_ray.weights.tensor_file import Spec
from neulig_ray.weights.tensor_writer import check_range

_STEP = 1 << 20  # numbers that are written at a time


def masked_specs(dense: Mapping[str, Spec], names: Sequence[str], n: int) -> dict[str, Spec]:
    """The tensors of a masked model: `base/NAME` for all, `shared/NAME` and `mask/NAME` for parameters.

    Masks are packed, eight entries to a byte, the first entry in the highest bit: uint8 (n, ceil(numel/8)).
    `rescalers`: float32 (n,).
    """
    found = {f"base/{name}": spec for name, spec in dense.items()}
    for name in names:
        found[f"shared/{name}"] = dense[name]
        found[f"mask/{name}"] = Spec((n, -(-dense[name].numel // 8)), torch.uint8)
    return found | {"rescalers": Spec((n,), torch.float32)}


def pack_masks(sink: Sink, piece: Piece, masks: torch.Tensor, numel: int) -> None:
    """Write masks bool (n, size) of a piece, which begins at a multiple of 8."""
    packed = torch.from_numpy(np.packbits(masks.numpy(), axis=1))
    for task, row in enumerate(packed):
        sink.write(f"mask/{piece.name}", row, task * -(-numel // 8) + piece.start // 8)


def empty_masks(sink: Sink, name: str, numel: int, n: int) -> None:
    """Write of a tensor, which is the base's in every task, that no task changes it."""
    for at in range(0, numel, _STEP):
        sink.write(f"shared/{name}", torch.zeros(min(_STEP, numel - at)), at)
    packed = n * -(-numel // 8)
    for at in range(0, packed, _STEP):
        sink.write(f"mask/{name}", torch.zeros(min(_STEP, packed - at), dtype=torch.uint8), at)


@dataclass(frozen=True)
class MaskedModel:
    """`source` holds the tensors of `masked_specs`; `labels` name the tasks, in the order of the masks."""

    source: Source
    labels: tuple[str, ...]

    def mask(self, name: str, task: int) -> torch.Tensor:
        """The mask of one task, bool, in the tensor's shape."""
        spec = self.source.specs[f"shared/{name}"]
        width = self.source.specs[f"mask/{name}"].shape[1]
        packed = self.source.read(f"mask/{name}", task * width, (task + 1) * width).numpy()
        return torch.from_numpy(np.unpackbits(packed, count=spec.numel).astype(bool)).view(spec.shape)

    @property
    def specs(self) -> dict[str, Spec]:
        """What one task's model holds."""
        stored = self.source.specs.items()
        return {name.removeprefix("base/"): spec for name, spec in stored if name.startswith("base/")}

    def task(self, label: str) -> int:
        """The place of a task among the masks; raises InputError for a label that is not there."""
        if label not in self.labels:
            raise unknown("task of the masked model", label, self.labels)
        return self.labels.index(label)

    def tensor(self, name: str, task: int) -> torch.Tensor:
        """A tensor of one task's model: base + r_t mask_t * shared, in the base's dtype.

        Raises StageError where that dtype cannot hold a number.
        """
        stored, spec = f"base/{name}", self.source.specs[f"base/{name}"]
        found = self.source.read(stored).view(spec.shape)
        if f"shared/{name}" in self.source.specs:
            rescaler = float(self.source.read("rescalers")[task])
            shared = self.source.read(f"shared/{name}").view(spec.shape).float()
            wide = found.float() + rescaler * self.mask(name, task) * shared
            found = wide.to(spec.dtype)
            check_range(wide, found, name, "the masked model")
        return found.clone()

    def dense(self, label: str) -> dict[str, torch.Tensor]:
        """The state of one task's model; raises InputError for a label that is not there."""
        task = self.task(label)
        return {name: self.tensor(name, task) for name in self.specs}

    @property
    def parameters(self) -> int:
        """What is kept, counted in float32 parameters: base, shared vector, and 1/32 for each mask bit."""
        specs = self.source.specs
        floats = sum(s.numel for name, s in specs.items() if not name.startswith("mask/"))
        return floats + sum(s.numel for name, s in specs.items() if name.startswith("mask/")) // 4
