"""Where the engine reads tensors from and writes them to: files by slices, or state dicts in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from neulig_ray.errors import InputError
from neulig_ray.weights.tensor_file import Spec, TensorFile
from neulig_ray.weights.tensor_writer import check_range

State = Mapping[str, torch.Tensor]


def moved(state: State, device: torch.device | str) -> dict[str, torch.Tensor]:
    """The state on a device; tensors that lie there already are not copied."""
    return {name: tensor.to(device) for name, tensor in state.items()}


class Source(Protocol):
    """The tensors of one model, readable by slices of their flat views, from several threads."""

    @property
    def specs(self) -> Mapping[str, Spec]: ...
    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor: ...
    def read_into(self, out: torch.Tensor, name: str, start: int = 0) -> None: ...


class Sink(Protocol):
    """Takes the merged tensors, in any order, by slices of their flat views."""

    def write(self, name: str, tensor: torch.Tensor, start: int = 0) -> None: ...


class StateSource:
    """A state dict in memory."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.specs = {name: Spec(tuple(t.shape), t.dtype) for name, t in state.items()}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Numbers start..stop of a tensor's flat view: the state's own memory where it can be."""
        return self._state[name].detach().reshape(-1)[start:stop]

    def read_into(self, out: torch.Tensor, name: str, start: int = 0) -> None:
        out.copy_(self.read(name, start, start + out.numel()))


class SeveralFiles:
    """One model whose tensors lie in several files, by the files' names; each is read where it lies."""

    def __init__(self, files: Mapping[str, Source]) -> None:
        """Raises InputError for a tensor that two files hold."""
        self._source: dict[str, Source] = {}
        self.specs: dict[str, Spec] = {}
        owner: dict[str, str] = {}
        for label, source in files.items():
            for name, spec in source.specs.items():
                if name in owner:
                    raise InputError(
                        f"{owner[name]} and {label} both hold {name!r}, and are files of one model: which is "
                        "meant cannot be told; download the model again"
                    )
                owner[name], self._source[name], self.specs[name] = label, source, spec

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        return self._source[name].read(name, start, stop)

    def read_into(self, out: torch.Tensor, name: str, start: int = 0) -> None:
        self._source[name].read_into(out, name, start)


class Under:
    """The tensors of a source whose names begin with `prefix`, under the rest of their names."""

    def __init__(self, source: Source, prefix: str) -> None:
        self._source, self._prefix = source, prefix
        self.specs = {
            name.removeprefix(prefix): spec
            for name, spec in source.specs.items()
            if name.startswith(prefix) and name != prefix
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        return self._source.read(self._prefix + name, start, stop)

    def read_into(self, out: torch.Tensor, name: str, start: int = 0) -> None:
        self._source.read_into(out, self._prefix + name, start)


class StateSink:
    """Collects the merged tensors as a state dict. Raises StageError for what float16 cannot hold."""

    def __init__(self, specs: Mapping[str, Spec]) -> None:
        self.state = {name: torch.empty(spec.shape, dtype=spec.dtype) for name, spec in specs.items()}

    def write(self, name: str, tensor: torch.Tensor, start: int = 0) -> None:
        flat = tensor.detach().reshape(-1)
        target = self.state[name].view(-1)[start : start + flat.numel()]
        target.copy_(flat)
        check_range(flat, target, name, "the merged state")


def as_source(model: "Source | State | nn.Module | Path | str", label: str = "a model") -> Source:
    """A model as the engine reads it: a state dict or module, a safetensors file's path, or a source already.

    Raises InputError, naming `label`, for anything else, and for entries that are no tensor of numbers.
    """
    if isinstance(model, (str, Path)):
        return TensorFile(model)
    if isinstance(model, nn.Module):
        model = model.state_dict()
    if isinstance(model, Mapping):
        check_tensors(model, label)
        return StateSource(model)
    if not all(hasattr(model, name) for name in ("specs", "read", "read_into")):
        raise InputError(
            f"{label} is {type(model).__name__}, which is no model: give a state dict (name -> tensor), a "
            "torch module, or the path of a safetensors file"
        )
    return model


def check_tensors(state: Mapping[str, torch.Tensor], label: str) -> None:
    """Raises InputError, naming `label`, for entries that are no tensor of numbers."""
    for name, tensor in state.items():
        _check_tensor(label, name, tensor)


def _check_tensor(label: str, name: object, tensor: object) -> None:
    if not isinstance(name, str):
        raise InputError(f"{label}: {name!r} is no name of a tensor: give a state dict (name -> tensor)")
    if not isinstance(tensor, torch.Tensor):
        raise InputError(
            f"{label}: {name!r} is {type(tensor).__name__}, not a tensor: give a state dict (name -> tensor) "
            "without it"
        )
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        what = "on the device meta, without numbers" if tensor.is_meta else f"{tensor.dtype}, {tensor.layout}"
        raise InputError(f"{label}: {name!r} is {what}, which is not merged: give a dense tensor of numbers")
