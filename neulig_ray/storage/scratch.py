"""Folders below ray/ for what a driver's runs leave while they go on: checkpoints, states, the plan.

Each driver writes into one of its own, RUN/OWNER, so that two that start at the same instant share nothing.
What a killed driver left is found by the next one of the same run.
"""

import datetime
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.layout import Top
from neulig_ray.storage.storage import Storage

ROOT: Final = Top.RAY
_OWNER: Final = re.compile(r"[0-9a-f]{12}")  # other folders are not of a driver
_SILENCE: Final = datetime.timedelta(
    days=1
)  # without a write: then an owner that nothing else tells of is gone


@dataclass(frozen=True)
class Scratch:
    """A driver's own folder `run/owner`."""

    storage: Storage
    run: str
    owner: str

    @property
    def path(self) -> str:
        return f"{self.run}/{self.owner}"

    def others(self) -> list[str]:
        """The folders of this run's other drivers, whether these go on or are gone."""
        return [folder for folder in folders(self.storage, self.run) if folder != self.path]

    def sweep(self, useless: Callable[[str], bool]) -> None:
        """Remove the others' folders that are useless. Where claims tell, that of a live driver stays."""
        for folder in self.others():
            if useless(folder) and (not self.storage.local or gone(self.storage, folder)):
                self.storage.delete_tree(folder)


@contextmanager
def scratch(storage: Storage, run: str) -> Iterator[Scratch]:
    """A new folder for `run` (KIND/NAME), with the claim that says that its owner lives.

    The folder is removed at the end, and stays when an exception ends the run.
    """
    own = Scratch(storage, f"{ROOT}/{run}", uuid.uuid4().hex[:12])
    with storage.claim(_claim(own.path), wait=True):
        yield own
        storage.delete_tree(own.path)


def folders(storage: Storage, run: str = ROOT) -> list[str]:
    """The owners' folders of a run, or of all: ray/KIND/NAME/OWNER, sorted."""
    parts = [path.split("/") for path in _sizes(storage, run)]
    return sorted({"/".join(part[:4]) for part in parts if len(part) > 4 and _OWNER.fullmatch(part[3])})


def size(storage: Storage, folder: str) -> int:
    """Bytes below a folder."""
    return sum(_sizes(storage, folder).values())


def gone(storage: Storage, folder: str) -> bool:
    """Whether the owner of a folder has ended: by its claim, on object stores by a day without a write."""
    if storage.local:
        with storage.claim(_claim(folder), wait=False) as granted:
            return granted
    latest = max((info.mtime for info in storage.files(folder)), default=None)
    return latest is None or datetime.datetime.now(datetime.UTC) - latest > _SILENCE


def _claim(folder: str) -> Artifact:
    return Artifact.of("scratch", folder, 1, {"folder": folder})


def _sizes(storage: Storage, folder: str) -> dict[str, int]:
    """Path within the storage -> bytes, of the files below a folder."""
    prefix = len(storage.root) + 1
    return {info.path[prefix:]: info.size for info in storage.files(folder)}
