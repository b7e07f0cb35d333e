"""Experts from Python: those of a storage, or of files, opened when they are used."""

import functools
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from neulig_ray.api.heads import zero_shot
from neulig_ray.api.merge_inputs import Finder, tensor_files
from neulig_ray.errors import InputError, unknown
from neulig_ray.models.archs import Arch
from neulig_ray.models.clip import build_tower, embed
from neulig_ray.models.tower_files import read_tower, stored_arch
from neulig_ray.pipeline.options import RunOptions
from neulig_ray.storage.inventory import StoredArtifact, inventory
from neulig_ray.storage.manifest import MANIFEST, read_manifest
from neulig_ray.storage.storage import Storage
from neulig_ray.weights.state_dicts import ModelFile, open_checkpoint


@dataclass(frozen=True)
class Expert:
    """An image encoder fine-tuned on one task, in a file that is read when it is used.

    `label`: "task@origin", or the file's stem where the file does not say. `identity`: the file's sha256
    where that is known. `storage`: where its origin is looked for. It can stand for a model in `merge`,
    `evaluate` and `Gate.merge`.
    """

    label: str
    path: Path
    identity: Mapping[str, Any] = field(repr=False)
    storage: str = field(default=RunOptions.storage, repr=False)
    _copies: object = field(default=None, repr=False, compare=False)  # keeps a downloaded file on the disk

    @property
    def checkpoint(self) -> ModelFile:
        """The file, opened now."""
        return open_checkpoint(self.path)

    @functools.cached_property
    def about(self) -> Mapping[str, Any]:
        """What the file says of itself: arch, task, origin, seed, recipe; empty for a foreign one."""
        return self.checkpoint.about

    @property
    def arch(self) -> Arch:
        """The architecture; raises InputError where the file does not name it."""
        if "arch" not in self.about:
            raise InputError(f"{self.path} does not say its arch: bring it in with `neulig import`")
        return stored_arch(self.about, str(self.path))

    @property
    def task(self) -> str:
        """The task that it was fine-tuned on; raises InputError where the file does not name it."""
        return self._said("task")

    @property
    def origin(self) -> str:
        """The origin that it was fine-tuned from; raises InputError where the file does not name it."""
        return self._said("origin")

    def _said(self, key: str) -> str:
        if not self.about.get(key):
            raise InputError(f"{self.path} does not say its {key}: bring it in with `neulig import`")
        return str(self.about[key])

    def state(self) -> dict[str, torch.Tensor]:
        """The state dict of the visual tower, floats as float32; raises InputError for a damaged file."""
        return dict(read_tower(self.path)[0])

    def tower(self) -> nn.Module:
        """The visual tower in eval mode: pixels (B, 3, S, S), preprocessed, -> embeddings (B, d)."""
        tower = build_tower(self.arch)
        tower.load_state_dict(self.state())
        return tower

    def embed(
        self, images: np.ndarray, batch_size: int = 256, device: torch.device | str = "cpu"
    ) -> np.ndarray:
        """Embeddings float32 (N, d), not normalised, of images uint8 (N, H, W, 3) in RGB."""
        return embed(self.tower(), images, self.arch, batch_size, device)

    def head(self, task: str | None = None) -> np.ndarray:
        """The zero-shot head float32 (C, d) that its origin writes for a task, its own or another.

        Scores are head @ z of a normalised embedding z. Raises InputError where the origin cannot be had.
        """
        return zero_shot(task or self.task, self.arch.name, self.origin, self.storage).numpy()


def load_experts(
    source: str | Path | Sequence[str | Path] = RunOptions.storage,
    *,
    arch: str | None = None,
    origin: str | None = None,
    tasks: Iterable[str] | None = None,
    storage: str | Path = RunOptions.storage,
) -> dict[str, Expert]:
    """The experts of a storage (or of a folder of safetensors files), or those that are named, by label.

    `source`: a storage, of which all finished experts are taken; or a list of paths and of names of artifacts
    in `storage`. `arch`, `origin`, `tasks`: only such experts. Labels are "task@origin", sorted. Nothing is
    read but what the files say of themselves; of an object store, the files are copied to this machine.

    Raises InputError where nothing is found, and where experts of several archs, or two of one label, are:
    with what tells them apart.

    Example:
        >>> import neulig_ray as nl
        >>> experts = nl.load_experts("./neulig-storage", tasks=("digits", "textures"))
        >>> list(experts)
        ['digits@seed-0', 'textures@seed-0']
        >>> experts["digits@seed-0"].arch.name
        'tiny-rn'
        >>> merged = nl.merge("average", experts)
    """
    wanted = None if tasks is None else set(tasks)
    if not isinstance(source, str | Path):
        found = _named(source, Storage(str(storage)).uri)
    elif files := tensor_files(Path(source).expanduser()):
        found = _named(files, Storage(str(storage)).uri)
    else:
        return _stored(Storage(str(source)), arch, origin, wanted)
    kept = [e for e in found if _matches(e.about, arch, origin, wanted)]
    return _by_label([(expert.label, expert) for expert in kept], str(source))


def _matches(about: Mapping[str, Any], arch: str | None, origin: str | None, tasks: set[str] | None) -> bool:
    return (
        arch in (None, about.get("arch"))
        and origin in (None, about.get("origin"))
        and (tasks is None or about.get("task") in tasks)
    )


def _named(models: Sequence[str | Path], storage: str) -> list[Expert]:
    copies = tempfile.TemporaryDirectory(prefix="neulig-experts-")
    find = Finder(storage, Path(copies.name))
    found = []
    for model in models:
        opened = find(model, str(model), Path(model).stem)
        about, path = opened.about, opened.path
        assert path is not None
        label = f"{about['task']}@{about['origin']}" if {"task", "origin"} <= about.keys() else opened.label
        found.append(Expert(label, path, opened.identity, storage, copies))
    return found


def _stored(
    storage: Storage, arch: str | None, origin: str | None, tasks: set[str] | None
) -> dict[str, Expert]:
    """The finished experts of a storage, found by what their manifests say."""
    found: list[tuple[str, str, StoredArtifact]] = []
    for item in inventory(storage):
        if item.kind == "expert" and item.whole:
            manifest = read_manifest(storage.read(f"{item.path}/{MANIFEST}"), item.path)
            its_arch, label = str(manifest["info"]["arch"]), str(manifest["label"])
            label = label.removeprefix(f"{its_arch}.")
            task, _, its_origin = label.rpartition("@")
            if _matches({"arch": its_arch, "origin": its_origin, "task": task}, arch, origin, tasks):
                found.append((its_arch, label, item))
    archs = sorted({its_arch for its_arch, _, _ in found})
    if len(archs) > 1:
        raise InputError(f"{storage.uri} has experts of {' and '.join(archs)}: give arch=, one of them")
    kept = _by_label([(label, item) for _, label, item in found], storage.uri)
    named = _named([f"expert:{item.name}" for item in kept.values()], storage.uri)
    return dict(zip(kept, named, strict=True))


def _by_label(found: Sequence[tuple[str, Any]], where: str) -> dict[str, Any]:
    """The experts by label, sorted; raises InputError for none, and for two of one label."""
    if not found:
        raise InputError(f"no such expert in {where}: experiments make them (`neulig finetune EXPERIMENT`)")
    labels = [label for label, _ in found]
    for label in labels:
        if labels.count(label) > 1:
            names = [
                f"expert:{item.name}" if isinstance(item, StoredArtifact) else str(item.path)
                for other, item in found
                if other == label
            ]
            raise InputError(
                f"{where} has {len(names)} experts {label}: name those that are meant, "
                f"load_experts([...], storage=...), among {', '.join(names)}"
            )
    return dict(sorted(found))


def check_labels(given: Iterable[str], known: Iterable[str]) -> None:
    """Raises InputError, with the near misses, for the first label that nothing answers to."""
    known = list(known)
    for label in given:
        if label not in known:
            raise unknown("expert", label, known)
