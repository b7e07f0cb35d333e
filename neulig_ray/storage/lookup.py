"""Finding a stored artifact's file of tensors by a name that people type."""

import re
from pathlib import Path

from neulig_ray.errors import InputError, unknown
from neulig_ray.storage.inventory import StoredArtifact, inventory
from neulig_ray.storage.layout import Top
from neulig_ray.storage.storage import Storage

SUFFIX = ".safetensors"
_FINGERPRINT = re.compile(r"[0-9a-f]{6,16}")


def looks_stored(name: str) -> bool:
    """Whether a name may be an artifact's: KIND:LABEL, artifacts/KIND/NAME, or a fingerprint's six digits."""
    kind, colon, label = name.partition(":")
    named = bool(colon and kind.isidentifier() and label and not label.startswith("//"))
    return named or name.startswith(f"{Top.ARTIFACTS}/") or _FINGERPRINT.fullmatch(name) is not None


def find(storage: Storage, name: str) -> StoredArtifact:
    """The artifact that is meant: `expert:tiny-vit.digits@seed-0`, its path, or the start of its fingerprint.

    Raises InputError, with the near misses, for none, for several, and for an unfinished one.
    """
    stored = inventory(storage)
    known = {f"{item.kind}:{item.name.rpartition('-')[0]}" for item in stored if item.whole}
    found = [item for item in stored if _is_meant(item, name)]
    if not found:
        raise unknown(f"artifact of {storage.uri}", name, known, "`--storage URI` names another storage.")
    whole = [item for item in found if item.whole]
    if not whole:
        raise InputError(f"{name!r} in {storage.uri} is unfinished: run its experiment again")
    if len(whole) > 1:
        choices = ", ".join(f"{item.fingerprint} ({item.kind}:{item.name})" for item in whole)
        raise InputError(f"{name!r} means several artifacts of {storage.uri}: name one of {choices}")
    return whole[0]


def _is_meant(item: StoredArtifact, name: str) -> bool:
    kind, colon, label = name.partition(":")
    if colon:
        return item.kind == kind and label in (item.name, item.name.rpartition("-")[0])
    if name.startswith(f"{Top.ARTIFACTS}/"):
        return item.path == name.rstrip("/")
    return item.fingerprint.startswith(name)


def tensors_of(storage: Storage, item: StoredArtifact) -> tuple[str, str]:
    """Path, within the storage, and sha256 of an artifact's only file of tensors; raises InputError."""
    return tensors_in(storage.manifest_at(item.path), item.path)


def tensors_in(manifest: dict[str, dict[str, dict[str, str]]], path: str) -> tuple[str, str]:
    """The same of a manifest that is read already."""
    files = {name: about["sha256"] for name, about in manifest["files"].items() if name.endswith(SUFFIX)}
    if len(files) != 1:
        raise InputError(f"{path} has {len(files)} {SUFFIX} files: name the file that is meant")
    ((name, sha256),) = files.items()
    return f"{path}/{name}", sha256


def local_copy(storage: Storage, path: str, folder: Path) -> Path:
    """A local path of a stored file: the file itself in a local storage, else a copy in `folder`."""
    if storage.local:
        return Path(storage.place(path))
    copy = folder / path.replace("/", "_")
    storage.download(path, copy)
    return copy
