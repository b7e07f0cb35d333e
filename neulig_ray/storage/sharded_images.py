"""Images of the storage that are too many for memory: read row by row from files on the node."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from neulig_ray import paths
from neulig_ray.errors import StageError
from neulig_ray.parts import whole_file
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage

SHARD_BYTES = 128 * 2**20  # while a shard is written, three copies of it are in memory


def node_file(storage: Storage, artifact: Artifact, name: str) -> Path:
    """A file of an artifact as a path on this node: the storage's own, or a copy in the node's cache.

    A copy's sha256 is checked as it arrives; raises StageError when it is not the manifest's.
    """
    if storage.local:
        return Path(storage.place(f"{artifact.path}/{name}"))
    storage.place(
        f"{artifact.path}/{name}"
    )  # `name` is a manifest's: it may not lead out of the cache either
    copy = paths.cache_root() / artifact.path / name
    if not copy.is_file():
        data = storage.load(artifact, name)
        if hashlib.sha256(data).hexdigest() != storage.manifest(artifact)["files"][name]["sha256"]:
            raise StageError(
                f"{storage.full(artifact.path)}/{name} arrived damaged: its sha256 is not its manifest's. "
                "Run `neulig storage verify`"
            )
        copy.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(copy) as stream:
            stream.write(data)
    return copy


class StoredImages:
    """Images uint8 (N, H, W, 3) in several .npy files, memory-mapped: only rows that are asked for are read.

    It reads like an array as far as `Split` says. Pickled, it is the name of its artifact: who unpickles it,
    on whichever node, opens the files there.
    """

    def __init__(self, storage: Storage, artifact: Artifact, names: tuple[str, ...]) -> None:
        self._source = (storage, artifact, names)
        self._shards = [np.load(node_file(storage, artifact, name), mmap_mode="r") for name in names]
        self._ends = np.cumsum([len(shard) for shard in self._shards])
        self.shape: tuple[int, ...] = (int(self._ends[-1]), *self._shards[0].shape[1:])
        self.dtype = self._shards[0].dtype
        self.ndim = len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """The image of an index (H, W, 3), or those of a slice or of an integer array (B, H, W, 3)."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        wanted = np.asarray(rows)
        if wanted.dtype.kind not in "iu":
            raise TypeError(f"images are indexed by integers, not {wanted.dtype}")
        flat = wanted.reshape(-1).astype(np.int64)
        flat = np.where(flat < 0, flat + len(self), flat)
        if flat.size and not 0 <= flat.min() <= flat.max() < len(self):
            raise IndexError(f"rows {flat.min()}..{flat.max()} of {len(self)} images")
        found = np.empty((len(flat), *self.shape[1:]), self.dtype)
        shards = np.searchsorted(self._ends, flat, side="right")
        for number in np.unique(shards):
            here = np.flatnonzero(shards == number)
            start = self._ends[number] - len(self._shards[number])
            found[here] = self._shards[number][flat[here] - start]
        return found.reshape(*wanted.shape, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredImages, self._source
