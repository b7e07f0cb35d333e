"""Opening the models of a merge: safetensors, state dicts of torch.save, towers inside whole CLIPs."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import torch

from neulig_ray.documents import bounded_json
from neulig_ray.errors import InputError
from neulig_ray.weights.folders import INDEX, shards, weight_files
from neulig_ray.weights.metadata import HEADER_KEY
from neulig_ray.weights.pickles import REMEDY, NoWeights, TorchFile
from neulig_ray.weights.sources import SeveralFiles, Source, Under
from neulig_ray.weights.tensor_file import TensorFile, looks_safe, not_read, unreadable

_PIECE = 1 << 20  # numbers that are copied or compared at a time
_SAMPLE = 64  # numbers at both ends of a tensor that tell most models apart
_MOST_LISTED: Final = 5
_TEXTS: Final = ("kind", "arch", "activation", "method", "origin_fingerprint", "dense_kind")


@dataclass(frozen=True)
class ModelFile:
    """A model that is open. `about`: what its header says under "neulig", which may be nothing.

    `path`: None where it lies in memory. `files`: those that it is read from; one is `path` itself, or they
    lie in that folder. `notes`: what people are told of it, such as what was left out.
    """

    path: Path | None
    source: Source
    about: Mapping[str, Any]
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def open_checkpoint(path: Path | str, weights: str = "") -> ModelFile:
    """Open a safetensors file, a state dict that torch.save wrote, or a model's folder or index.

    `weights`: the key of the state dict to take where a file holds several, or what its tensors' names begin
    with. Raises InputError for everything else: a whole module, a file without tensors, a damaged one.
    """
    path = Path(path)
    if not path.is_dir() and not path.name.endswith(INDEX):
        return _opened(path, weights)
    files = weight_files(path) if path.is_dir() else shards(path)
    parts = [_opened(file, weights) for file in files]
    if len(parts) == 1:
        return parts[0]
    source = SeveralFiles({str(part.path): part.source for part in parts})
    return ModelFile(path, source, {}, tuple(files), tuple(note for part in parts for note in part.notes))


def _opened(path: Path, weights: str) -> ModelFile:
    try:
        with path.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        raise unreadable(str(path), error) from error
    # A safetensors file begins with the length of its header, which may look like either.
    if (start[:2] == b"PK" or start[:1] == b"\x80") and not looks_safe(start):
        source = _state_dict(path, weights, "zip file" if start[:2] == b"PK" else "pickle")
        return ModelFile(path, source, {}, (path,), tuple(_notes(source)))
    file = TensorFile(path)
    part = Under(file, f"{weights}.")
    if weights and part.specs:  # names that were flattened before they were written
        left = len(file.specs) - len(part.specs)
        note = f"{path}: the weights are those of {weights!r}; left out: {left} tensors of other names"
        return ModelFile(path, part, {}, (path,), (note,) if left else ())
    return ModelFile(path, file, _about(file), (path,))


def _about(file: TensorFile) -> dict[str, Any]:
    """What the header says under "neulig"; raises InputError for what neulig does not write there."""
    where = f"{file.path}: the header's {HEADER_KEY!r} entry"
    about = bounded_json(file.metadata.get(HEADER_KEY, "{}"), where)
    if not isinstance(about, dict):
        return {}
    for key in _TEXTS:
        if not isinstance(about.get(key, ""), (str, type(None))):
            raise InputError(
                f"{where} says that {key!r} is {str(about[key])[:80]}, and not a text: it is damaged"
            )
    return about


def _state_dict(path: Path, weights: str, kind: str) -> TorchFile:
    try:
        found = TorchFile(path, weights)
    except NoWeights as error:
        raise InputError(
            f"{path} is a {kind}, but damaged or not a state dict of torch.save: {error.reason}. {REMEDY}. "
            "`neulig import` runs nothing of such files either"
        ) from None
    if found.module:
        raise InputError(
            f"{path} is a {kind} of a whole module ({found.module}), not a state dict. Nothing of it is run "
            "here; `neulig import` rebuilds a visual tower's tensors out of one"
        )
    for name, dtype in found.unread.items():
        raise not_read(str(path), name, dtype)
    for name, made_by in found.odd.items():
        if "_rebuild_" in made_by:  # a tensor, of a layout that is not read
            raise InputError(
                f"{path}: {name!r} is a tensor of {made_by} (sparse, quantised or of another layout), which "
                "cannot be merged: convert it, to float32 for instance"
            )
    return found


def _notes(file: TorchFile) -> list[str]:
    told = []
    if file.key and file.others:
        told.append(f"{file.path}: the weights are those of {file.key!r}; left out: {_some(file.others)}")
    if file.odd:
        odd = [f"{name!r} ({kind})" for name, kind in file.odd.items()]
        told.append(f"{file.path}: left out of the merge, being no tensors: {_some(odd)}")
    return told


def _some(items: Sequence[str]) -> str:
    rest = len(items) - _MOST_LISTED
    return ", ".join(items[:_MOST_LISTED]) + (f" and {rest} more" if rest > 0 else "")


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
