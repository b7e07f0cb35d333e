"""Jobs for tests: they call a function."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from neulig_ray.cluster.jobs import Job, Needs
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage

NOTHING_SPECIAL = Needs()


@dataclass(frozen=True)
class CallJob(Job):
    """`function(storage)` gives the files and the info of `artifact`."""

    artifact: Artifact
    function: Callable[[Storage], Any]
    asks: Needs = NOTHING_SPECIAL

    @property
    def needs(self) -> Needs:
        return self.asks

    def make(self, storage: Storage) -> Any:
        return self.function(storage)
