"""The models of a merge: found, opened, and checked against each other before anything is written."""

import contextlib
import difflib
import functools
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from neulig_ray.api.merge_origin import carried_origin
from neulig_ray.errors import InputError
from neulig_ray.storage.manifest import MANIFEST, manifest_in
from neulig_ray.weights.fitting import VISUAL, Fitted, fit
from neulig_ray.weights.folders import INDEX
from neulig_ray.weights.sources import Source, State, StateSource, check_tensors
from neulig_ray.weights.state_dicts import ModelFile, open_checkpoint, twins
from neulig_ray.weights.tensor_file import DTYPES, Spec, not_read

# What two models of one architecture share in what their files say of themselves.
_ARCHITECTURE = ("arch", "activation", "config")


class StoredModel(Protocol):
    """A model that was found before: an expert of a storage."""

    @property
    def checkpoint(self) -> ModelFile: ...
    @property
    def identity(self) -> Mapping[str, Any]: ...


Model = str | Path | State | nn.Module | StoredModel


@dataclass(frozen=True)
class Input:
    """A model as it was named.

    `identity`: its content's sha256 where that is known, else its file's name and size; nothing in memory.
    """

    given: str
    label: str
    checkpoint: ModelFile
    identity: Mapping[str, Any]

    @property
    def path(self) -> Path | None:
        return self.checkpoint.path

    @property
    def about(self) -> Mapping[str, Any]:
        return self.checkpoint.about

    def record(self) -> dict[str, Any]:
        """What the merged file remembers of it."""
        return {"label": self.label, **self.identity}


@dataclass(frozen=True)
class Inputs:
    """Everything that a merge reads. `notes`: what people are told of it."""

    experts: tuple[Input, ...]
    base: Input | None
    statistics: tuple[Input, ...]
    notes: tuple[str, ...]

    @property
    def base_source(self) -> Source | None:
        return None if self.base is None else self.base.checkpoint.source

    @functools.cached_property
    def fitted(self) -> Fitted:
        """The models as they go together; raises InputError for those that do not."""
        return fit(self.sources, self.base_source, self.base.given if self.base else "")

    @property
    def of_clip(self) -> bool:
        """Whether the base is a whole CLIP, and the experts are visual towers."""
        return self.fitted.prefix.base == VISUAL

    @property
    def specs(self) -> dict[str, Mapping[str, Spec]]:
        """What the experts and the base hold, by the names that they were given."""
        found = {label: source.specs for label, source in self.fitted.experts.items()}
        if self.base is not None and self.fitted.base is not None:
            found[self.base.given] = self.fitted.base.specs
        return found

    @property
    def sources(self) -> dict[str, Source]:
        """The experts by their files' names, as messages call them."""
        return {expert.given: expert.checkpoint.source for expert in self.experts}

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(expert.label for expert in self.experts)

    @property
    def paths(self) -> dict[str, Path]:
        """All files that are read, by the names that they were given."""
        base = () if self.base is None else (self.base,)
        return {
            found.given if file == found.path else f"{found.given}: {file.name}": file
            for found in (*self.experts, *base, *self.statistics)
            for file in found.checkpoint.files
        }

    @property
    def kind(self) -> str | None:
        """Tower or origin, where all experts are such files of neulig: the merged file is one again."""
        kinds = {expert.about.get("kind") for expert in self.experts}
        return str(kinds.pop()) if len(kinds) == 1 and kinds <= {"tower", "origin"} else None


@contextlib.contextmanager
def opened(
    experts: Mapping[str, Model] | Sequence[Model],
    base: Model | None,
    statistics: Sequence[Model],
    storage: str,
    weights_key: str = "",
) -> Iterator[Inputs]:
    """Open and check the models; copies of what an object store holds are gone at the end.

    `experts`: label -> model, or models alone, which are called after their files. `weights_key`: of the
    state dicts to take out of files that hold several. Raises InputError, naming the files, for what is not
    there, cannot be read or cannot be merged.
    """
    if len(experts) < 2:
        raise InputError(
            f"{len(experts)} expert{'' if len(experts) == 1 else 's'} given: a merge takes two or more "
            "(of one model every method gives back that model, at most rescaled): --experts E1 E2 ..."
        )
    models = list(experts.values()) if isinstance(experts, Mapping) else list(experts)
    given = [_name(model, f"experts[{number}]") for number, model in enumerate(models)]
    labels = _labels(given)
    if isinstance(experts, Mapping):
        labels = [str(label) for label in experts]
        given = [_name(model, label) for model, label in zip(models, labels, strict=True)]
    for name in given:
        if given.count(name) > 1:
            raise InputError(f"{name!r} is given twice: each expert counts once")
    with tempfile.TemporaryDirectory(prefix="neulig-merge-") as folder:
        find = Finder(storage, Path(folder), weights_key)
        found = tuple(map(find, models, given, labels))
        origin = None if base is None else find(base, (name := _name(base, "the base")), _stem(name))
        measured = tuple(
            find(model, (name := _name(model, f"statistics[{number}]")), _stem(name))
            for number, model in enumerate(statistics)
        )
        inputs = Inputs(found, origin, measured, ())
        yield replace(inputs, notes=tuple(_check(inputs)))


def _check(inputs: Inputs) -> Iterator[str]:
    """Notes on models that fit together; raises InputError for those that do not."""
    first, *others = inputs.experts
    for number, one in enumerate(inputs.experts):
        for other in inputs.experts[number + 1 :]:
            if _same_file(one, other):
                raise InputError(
                    f"{one.given!r} and {other.given!r} are the same file: each expert counts once"
                )
    base = inputs.base
    for each in (*inputs.experts, *((base,) if base else ())):
        yield from each.checkpoint.notes
    for other in (*others, *((base,) if base else ())):
        for key in _ARCHITECTURE:
            mine, theirs = first.about.get(key), other.about.get(key)
            if mine is not None and theirs is not None and mine != theirs:
                shown = "" if key == "config" else f" ({mine!r} and {theirs!r})"
                raise InputError(
                    f"{first.given!r} and {other.given!r} are of different {key}{shown}: merging takes "
                    "models of one architecture"
                )
    yield from inputs.fitted.notes
    for expert in inputs.experts:
        if base is not None and _same_file(expert, base):
            yield f"{expert.given} is the base as well: the task vector of this expert is zero"
    if pair := twins(inputs.fitted.experts):
        raise InputError(f"{pair[0]!r} and {pair[1]!r} hold the same tensors: each expert counts once")
    origin = carried_origin([expert.about for expert in inputs.experts], base.about if base else None)
    if "," in (named := origin.get("origin", "")):
        yield f"the experts come from different origins: {', '.join(named.split(','))}"


def _same_file(one: Input, other: Input) -> bool:
    return one.path is not None and other.path is not None and one.path.samefile(other.path)


def _name(model: Model, otherwise: str) -> str:
    """How messages call a model: by its file, or by its place."""
    return str(model) if isinstance(model, str | Path) else otherwise


class Finder:
    """Finds models by path, and by name in the storage, which is opened when a name asks for it.

    State dicts and modules are taken as they are; what lies on another device is copied to this one's memory.
    """

    def __init__(self, storage: str, folder: Path, weights_key: str = "") -> None:
        self._uri, self._folder, self._weights_key = storage, folder, weights_key

    def __call__(self, model: Model, name: str, label: str) -> Input:
        if isinstance(model, nn.Module):
            model = model.state_dict()
        if isinstance(model, Mapping):
            return Input(name, label, ModelFile(None, StateSource(_in_memory(model, name)), {}), {})
        if not isinstance(model, str | Path):
            return Input(name, label, model.checkpoint, model.identity)
        path, sha256 = self._locate(str(model))
        checkpoint = open_checkpoint(path, self._weights_key)
        if checkpoint.about.get("kind") == "masked":
            method = checkpoint.about.get("method")
            raise InputError(
                f"{name!r} is a masked model, with a task's dense model in it for each of its experts: "
                f"`neulig merge {method} --masks {name} --task T --out F` writes one"
            )
        size = sum(file.stat().st_size for file in checkpoint.files)
        identity = {"sha256": sha256} if sha256 else {"file": path.name, "bytes": size}
        return Input(name, label, checkpoint, identity)

    def _locate(self, name: str) -> tuple[Path, str | None]:
        path = Path(name).expanduser()
        try:
            found = path.is_file()
        except OSError as error:  # a name that is too long, a folder that may not be read
            raise InputError(f"{shortened(name)} cannot be read: {error.strerror or error}") from error
        if found:
            return path, _stored_sha256(path)
        if (path / MANIFEST).is_file():
            from neulig_ray.storage.lookup import tensors_in

            file, sha256 = tensors_in(manifest_in(path), str(path))
            return Path(file), sha256
        if not name:
            raise InputError("'' is a folder: name a file of tensors in it")
        if path.is_dir():
            return path, None
        if path.exists():
            raise InputError(f"{name!r} is a device or a pipe: name a file of tensors")
        from neulig_ray.storage.lookup import find, local_copy, looks_stored, tensors_of
        from neulig_ray.storage.storage import Storage

        if not looks_stored(name):
            raise _missing(path, name)
        storage = Storage(self._uri)
        file, sha256 = tensors_of(storage, find(storage, name))
        return local_copy(storage, file, self._folder), sha256


def _in_memory(state: State, name: str) -> dict[str, torch.Tensor]:
    """The tensors on the CPU; raises InputError for what no file that is merged could hold."""
    check_tensors(state, name)
    for key, tensor in state.items():
        if tensor.dtype not in DTYPES.values():
            raise not_read(name, key, str(tensor.dtype).removeprefix("torch."))
    return {key: tensor.detach().cpu() for key, tensor in state.items()}


def tensor_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, by name."""
    return sorted(path for path in folder.glob("*.safetensors") if path.is_file())


def _stored_sha256(path: Path) -> str | None:
    """The hash in the manifest beside a file of a storage; None for other files: hashing would read them."""
    manifest = path.parent / MANIFEST
    if not manifest.is_file():
        return None
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return str(manifest_in(path.parent)["files"][path.name]["sha256"])
    return None


def _missing(path: Path, name: str) -> InputError:
    files = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, files, n=3, cutoff=0.6)
    hint = f" Did you mean {' or '.join(str(path.with_name(n)) for n in near)}?" if near else ""
    if "://" in name:
        hint += " Files are read from this machine's disks: download it first."
    return InputError(
        f"there is no file {name!r}.{hint} A stored model is named as KIND:LABEL, such as "
        "expert:tiny-vit.digits@seed-0, or by the first six digits of its fingerprint."
    )


def shortened(name: str) -> str:
    """A name in quotes, the end of it where it is very long."""
    return repr(name if len(name) <= 80 else f"...{name[-77:]}")


def _stem(name: str) -> str:
    path = Path(name)
    if path.name.endswith(INDEX) or not path.name:  # a model in several files is called as its folder is
        path = Path(os.path.abspath(path.parent if path.name else path))
    known = path.suffix in (".safetensors", ".pt", ".pth", ".bin")
    return (path.stem if known else path.name).rpartition(":")[2]


def _labels(names: Sequence[str]) -> list[str]:
    """File stems; with their folders, or a number, where these are not unique."""
    labels = [_stem(name) for name in names]
    if len(set(labels)) < len(labels):
        labels = [f"{Path(name).parent.name}/{_stem(name)}" for name in names]
    return [
        label if labels.count(label) == 1 else f"{label}#{number}"
        for number, label in enumerate(labels, start=1)
    ]
