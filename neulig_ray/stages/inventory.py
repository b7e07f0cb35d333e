"""What lies in a storage, judged by manifests and hashes alone."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from neulig_ray.stages.storage import MANIFEST, Storage


@dataclass(frozen=True)
class Stored:
    """A folder of artifacts/KIND/NAME; `whole` when its manifest is there."""

    kind: str
    name: str
    bytes: int
    whole: bool

    @property
    def path(self) -> str:
        return f"artifacts/{self.kind}/{self.name}"

    @property
    def fingerprint(self) -> str:
        return self.name.rpartition("-")[2]


def inventory(storage: Storage) -> list[Stored]:
    """Every artifact's folder, finished or not, sorted by kind and name."""
    sizes: dict[tuple[str, str], int] = defaultdict(int)
    whole = set()
    prefix = len(storage.full("artifacts")) + 1
    for info in storage.files("artifacts"):
        kind, name, file = info.path[prefix:].split("/", 2)
        sizes[kind, name] += info.size
        if file == MANIFEST:
            whole.add((kind, name))
    return [Stored(kind, name, size, (kind, name) in whole) for (kind, name), size in sorted(sizes.items())]


def damaged(storage: Storage, item: Stored) -> Iterator[str]:
    """A line for each file of a whole artifact that is missing or not what its manifest says."""
    manifest = json.loads(storage.read(f"{item.path}/{MANIFEST}"))
    for name, expected in manifest["files"].items():
        path = f"{item.path}/{name}"
        try:
            data = storage.read(path)
        except FileNotFoundError:
            yield f"{path}: missing"
            continue
        if len(data) != expected["bytes"]:
            yield f"{path}: {len(data)} bytes instead of {expected['bytes']}"
        elif hashlib.sha256(data).hexdigest() != expected["sha256"]:
            yield f"{path}: its sha256 is not its manifest's"


def imports(storage: Storage, stored: Iterable[Stored]) -> set[str]:
    """The fingerprints of imported experts: somebody put them there, for results that may still come."""
    return {
        item.fingerprint
        for item in stored
        if item.kind == "expert"
        and item.whole
        and "source_layout" in json.loads(storage.read(f"{item.path}/{MANIFEST}"))["info"]
    }


def referred(storage: Storage) -> set[str]:
    """The fingerprints that some experiment's results, last or earlier, were made from."""
    found: set[str] = set()
    for info in storage.files(""):
        if info.base_name == "results.json" and "/artifacts/" not in info.path:
            about = json.loads(storage.read(info.path[len(storage.root) + 1 :]))
            found.update(about.get("artifacts", ()))
    return found
