"""What lies in a storage, judged by names, manifests and hashes alone."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from neulig_ray.errors import InputError
from neulig_ray.storage.layout import ABOUT, FOLDERS, Top, is_ours, usable_name
from neulig_ray.storage.manifest import MANIFEST
from neulig_ray.storage.storage import Storage

_NAME: Final = re.compile(r".+-[0-9a-f]{16}")
_PASSING: Final = re.compile(
    r"\.(probe|doctor)-[0-9a-f]{32}|.+\.[0-9a-f]{32}\.part"
)  # of a write that was killed


@dataclass(frozen=True)
class StoredArtifact:
    """A folder artifacts/KIND/NAME; `whole` when its manifest is there. `files`: path in it -> bytes."""

    kind: str
    name: str
    files: dict[str, int]

    @property
    def whole(self) -> bool:
        return bool(self.files.get(MANIFEST))

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    @property
    def path(self) -> str:
        return f"{Top.ARTIFACTS}/{self.kind}/{self.name}"

    @property
    def fingerprint(self) -> str:
        return self.name.rpartition("-")[2]


class Survey(NamedTuple):
    """Paths -> what they are: `strays` are not of this package, `unread` folders may hold anything."""

    stored: list[StoredArtifact]
    strays: dict[str, str]
    unread: dict[str, str]


def survey(storage: Storage) -> Survey:
    """Every artifact's folder, finished or not, sorted by kind and name, and what else is in their places."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    listing = storage.listing(Top.ARTIFACTS)
    strays = {**listing.odd, **listing.links}
    start = len(storage.root.rstrip("/")) + 1
    for info in listing.files:
        path = info.path[start:]
        _, kind, name, *inner = path.split("/") + [""] * 2
        if kind.isidentifier() and _NAME.fullmatch(name) and any(inner):
            found.setdefault((kind, name), {})["/".join(filter(None, inner))] = info.size
        else:
            strays[path] = "no file of an artifact"
    for name, folder in storage.top().items():
        known = name in FOLDERS or usable_name(name) if folder else is_ours(name)
        if not known and not _PASSING.fullmatch(name):
            strays[name] = "no folder of an experiment" if folder else "no file of a storage"
    stored = [StoredArtifact(*key, files) for key, files in sorted(found.items())]
    return Survey(stored, dict(sorted(strays.items())), dict(sorted(listing.unread.items())))


def inventory(storage: Storage) -> list[StoredArtifact]:
    """The artifacts' folders of `survey`."""
    return survey(storage).stored


def damaged(storage: Storage, item: StoredArtifact) -> Iterator[str]:
    """A line for each file of a whole artifact that is missing or not what its manifest says."""
    try:
        manifest = storage.manifest_at(item.path)
    except InputError as error:
        yield str(error)
        return
    for name, expected in manifest["files"].items():
        path = f"{item.path}/{name}"
        try:
            size = storage.size(path)
            if size is None:
                yield f"{path}: missing"
            elif size != expected["bytes"]:
                yield f"{path}: {size} bytes instead of {expected['bytes']}"
            elif storage.sha256(path) != expected["sha256"]:
                yield f"{path}: its sha256 is not its manifest's"
        except InputError as error:  # a link to elsewhere
            yield f"{path}: {error}"


def foreign(storage: Storage, item: StoredArtifact, found: Survey) -> list[str]:
    """What is not ours in an artifact's folder: strays, folders that cannot be read, and, where it is whole,
    files that are not of its manifest. Raises InputError for a bad manifest."""
    start = f"{item.path}/"
    others = [
        path.removeprefix(start) for path in (*found.strays, *found.unread) if f"{path}/".startswith(start)
    ]
    if item.whole:
        own = {MANIFEST, *storage.manifest_at(item.path)["files"]}
        others += [name for name in item.files if name not in own and not _PASSING.fullmatch(name)]
    return sorted(others)


def imports(storage: Storage, stored: Iterable[StoredArtifact]) -> set[str]:
    """The fingerprints of imported experts: somebody put them there, for results that may still come."""
    return {
        item.fingerprint
        for item in stored
        if item.kind == "expert" and item.whole and "source_layout" in storage.manifest_at(item.path)["info"]
    }


def referred(storage: Storage) -> set[str]:
    """The fingerprints that some experiment's results, last or earlier, were made from.

    Raises InputError for results that cannot be read, StageError for folders: what they refer to is unknown.
    """
    found: set[str] = set()
    start = len(storage.root.rstrip("/")) + 1
    for folder, is_folder in storage.top().items():
        if not is_folder or not usable_name(folder):
            continue
        for info in storage.files(folder):
            if info.base_name == ABOUT:
                found.update(artifacts_of(storage.read_json(info.path[start:]), info.path))
    return found


def artifacts_of(about: Any, where: str) -> list[str]:
    """The fingerprints that a results.json names; raises InputError, naming `where`, for what is none."""
    named = about.get("artifacts", []) if isinstance(about, dict) else None
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise InputError(f"{where} does not say which artifacts it was made from")
    return named
