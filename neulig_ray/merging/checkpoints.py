"""Opening the models of a merge: safetensors, state dicts of torch.save, towers inside whole CLIPs."""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from neulig_ray.errors import InputError
from neulig_ray.merging.sources import Source, StateSource
from neulig_ray.tensorfile import DTYPES, TensorFile

HEADER_KEY = "neulig"  # of a file's metadata: what the file is, as JSON
# Where training programs keep the state dict inside what they save.
_NESTS = ("state_dict", "model", "model_state_dict", "module")
_PIECE = 1 << 20  # numbers that are copied or compared at a time
_SAMPLE = 64  # numbers at both ends of a tensor that tell most models apart
_IMPORT = "Nothing of it is run here; `neulig import` rebuilds such a file's tensors alone."


@dataclass(frozen=True)
class Checkpoint:
    """A model file that is open. `about`: what its header says under "neulig", which may be nothing."""

    path: Path
    source: Source
    about: Mapping[str, Any]


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a safetensors file, or a state dict that torch.save wrote (also one level down in a dict).

    Raises InputError for everything else: a whole module, a pickle with code, a damaged file.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            start = stream.read(9)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    # A safetensors file begins with the length of its header, which may look like either.
    zipped, pickled = start[:2] == b"PK", start[:1] == b"\x80"
    if (zipped or pickled) and start[8:9] != b"{":
        return Checkpoint(path, StateSource(_unpickled(path, mapped=zipped)), {})
    file = TensorFile(path)
    try:
        about = json.loads(file.metadata.get(HEADER_KEY, "{}"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: the header's {HEADER_KEY!r} entry is not JSON ({error})") from error
    return Checkpoint(path, file, about if isinstance(about, dict) else {})


def _unpickled(path: Path, *, mapped: bool) -> dict[str, torch.Tensor]:
    """The state dict of a file of torch.save, mapped into memory where the file allows it (zip files do)."""
    try:
        with warnings.catch_warnings(action="ignore"):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)
    except Exception as error:  # the unpickler lets through whatever a made-up file provokes
        text = str(error)
        if code := re.search(r"GLOBAL ([\w.]+)", text):
            raise InputError(
                f"{path} is a pickle that asks for {code[1]}: it holds a whole module or other objects, "
                f"which only running code could make. {_IMPORT}"
            ) from error
        if "TorchScript" in text:
            raise InputError(f"{path} is a TorchScript program, not a state dict. {_IMPORT}") from error
        told = next((line for line in text.splitlines() if line.strip()), "")
        if "weights_only" in told:  # torch advises to run the code that is in the file
            reason = re.search(r"WeightsUnpickler error: (.+)", text)
            told = reason[1] if reason else ""
        told = told or type(error).__name__
        kind = "zip file" if mapped else "pickle"
        raise InputError(
            f"{path} is a {kind}, but damaged or no state dict of torch.save ({told}). {_IMPORT}"
        ) from error
    nests = [key for key in _NESTS if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)]
    state = found[nests[0]] if nests else found
    if not isinstance(state, Mapping) or not state:
        raise InputError(f"{path} holds {type(state).__name__}, not a state dict (name -> tensor). {_IMPORT}")
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise InputError(
                f"{path}: {name!r} is {type(tensor).__name__}, not a tensor: save the state dict alone, or "
                f"under one of the keys {', '.join(_NESTS)}"
            )
        if tensor.dtype not in DTYPES.values() or tensor.layout != torch.strided:
            raise InputError(
                f"{path}: {name!r} is {tensor.dtype} ({tensor.layout}), which cannot be merged: convert it, "
                "to float32 for instance"
            )
    return {str(name): tensor for name, tensor in state.items()}


def twins(models: Mapping[str, Source]) -> tuple[str, str] | None:
    """Two models with equal tensors, bit by bit, or None. Models of equal specs; labels in the order given.

    A few numbers of every tensor tell most models apart; only what agrees in these is read whole.
    """
    ends = {label: _ends(source) for label, source in models.items()}
    for one, other in combinations(models, 2):
        if ends[one] == ends[other] and _equal(models[one], models[other]):
            return one, other
    return None


def _ends(source: Source) -> str:
    digest = hashlib.sha256()
    for name, spec in source.specs.items():
        for start in {0, max(spec.numel - _SAMPLE, 0)}:
            digest.update(_bytes(source.read(name, start, min(start + _SAMPLE, spec.numel))))
    return digest.hexdigest()


def _equal(one: Source, other: Source) -> bool:
    return all(
        spec.dtype == other.specs[name].dtype
        and _bytes(one.read(name, at, min(at + _PIECE, spec.numel)))
        == _bytes(other.read(name, at, min(at + _PIECE, spec.numel)))
        for name, spec in one.specs.items()
        for at in range(0, spec.numel, _PIECE)
    )


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def copy_tensors(source: Source, names: Sequence[str], sink: Any) -> None:
    """Copy whole tensors, piece by piece."""
    for name in names:
        numel = source.specs[name].numel
        for at in range(0, numel, _PIECE):
            sink.write(name, source.read(name, at, min(at + _PIECE, numel)), at)
