"""What a merge makes: what it holds, what its file says of itself, and where that may lie."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from neulig_ray import __version__
from neulig_ray.api.merge_inputs import Inputs, shortened
from neulig_ray.api.merge_origin import carried_origin
from neulig_ray.errors import InputError
from neulig_ray.merging.engine import Merge
from neulig_ray.weights.fitting import VISUAL
from neulig_ray.weights.metadata import ARCHITECTURE, FORMAT, file_metadata
from neulig_ray.weights.sources import Sink, StateSink
from neulig_ray.weights.state_dicts import copy_tensors
from neulig_ray.weights.tensor_file import Spec
from neulig_ray.weights.tensor_writer import TensorWriter

FUSE = "fuse"  # whose result is an origin again
_PICKLES = (".pt", ".pth", ".bin", ".ckpt")


def check_target(out: str, inputs: Mapping[str, Path]) -> Path:
    """The file to write, links followed; raises InputError for one of the inputs, or that cannot be."""
    try:
        target = Path(os.path.realpath(Path(out).expanduser()))
        target.exists()
    except (OSError, ValueError) as error:  # a name that is too long, a null byte
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--out {shortened(out)} cannot be written: {reason}") from error
    if target.suffix in _PICKLES:
        raise InputError(f"--out {out!r}: what is written is safetensors; name it *.safetensors")
    if not target.parent.is_dir():
        raise InputError(f"--out {out!r}: there is no folder {str(target.parent)!r}; make it first")
    if target.exists() and not target.is_file():
        raise InputError(f"--out {out!r} is a folder or a device, not a file")
    for given, path in inputs.items():
        if target.exists() and path.samefile(target):
            raise InputError(f"--out {out!r} is the input {given!r}: name another file to write")
    return target


class _InTower:
    """A sink for the visual tower inside a whole CLIP."""

    def __init__(self, whole: Sink) -> None:
        self._whole = whole

    def write(self, name: str, tensor: torch.Tensor, start: int = 0) -> None:
        self._whole.write(VISUAL + name, tensor, start)


@dataclass(frozen=True)
class Output:
    """The merged model. `whole`: the base's CLIP with the merged visual tower in it, an origin again."""

    merge: Merge
    inputs: Inputs
    specs: Mapping[str, Spec]
    about: Mapping[str, Any]
    whole: bool

    @classmethod
    def of(cls, merge: Merge, inputs: Inputs, dtype: torch.dtype | None) -> "Output":
        clip = inputs.base_source
        whole = merge.method.name == FUSE and inputs.of_clip
        specs = merge.specs(dtype)
        if whole and clip is not None:
            rest = {
                name: Spec(s.shape, dtype if dtype and s.dtype.is_floating_point else s.dtype)
                for name, s in clip.specs.items()
            }
            specs = rest | {VISUAL + name: spec for name, spec in specs.items()}
        return cls(merge, inputs, specs, _about(merge, inputs, whole), whole)

    @property
    def bytes(self) -> int:
        return sum(spec.nbytes for spec in self.specs.values())

    @property
    def what(self) -> str:
        """What the file is, for people."""
        names = {
            "tower": "a tower",
            "origin": "an origin",
            "masked": "shared tensors and a mask for each task",
            "merged": "a state dict",
        }
        arch = f" of {self.about['arch']}" if "arch" in self.about else ""
        return names[self.about["kind"]] + arch

    def write(self, target: Path) -> None:
        """Merge into a file. Raises StageError where it cannot be finished; then nothing is left of it."""
        with TensorWriter(target, self.specs, file_metadata(self.about)) as writer:
            self._fill(writer)

    def state(self) -> dict[str, torch.Tensor]:
        """Merge in memory. Raises StageError for NaN in the result, and for what float16 cannot hold."""
        sink = StateSink(self.specs)
        self._fill(sink)
        return sink.state

    def _fill(self, sink: Sink) -> None:
        self.merge.run(_InTower(sink) if self.whole else sink)
        clip = self.inputs.base_source
        if self.whole and clip is not None:
            rest = [name for name in clip.specs if not name.startswith(VISUAL)]
            copy_tensors(clip, rest, sink)


def _about(merge: Merge, inputs: Inputs, whole: bool) -> dict[str, Any]:
    """What the file says of itself under "neulig": what it is, and what it was made of."""
    base = inputs.base
    like = base.about if whole and base is not None else inputs.experts[0].about
    kind = "merged"
    if whole:
        kind = "origin" if like.get("kind") == "origin" else kind
    elif merge.method.masked and merge.task is None:
        kind = "masked"
    elif inputs.kind is not None:
        kind = inputs.kind
    same = {key: like[key] for key in ARCHITECTURE if key in like} if whole or inputs.kind else {}
    if inputs.kind == "tower" and not whole:
        same |= carried_origin([expert.about for expert in inputs.experts], base.about if base else None)
    return {
        "format": FORMAT,
        "kind": kind,
        **same,
        "method": merge.method.name,
        "options": dict(merge.options),
        "experts": [expert.record() for expert in inputs.experts],
        "base": base.record() if base is not None else None,
        "buffers": merge.buffers,
        "version": __version__,
        **({"task": inputs.labels[merge.task]} if merge.task is not None else {}),
        **({"dense_kind": inputs.kind or "merged"} if kind == "masked" else {}),
    }
