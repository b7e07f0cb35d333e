"""What a training is to the cluster."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from neulig_ray.cluster.cost import Cost, Sizes
from neulig_ray.cluster.jobs import JobOutput
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage


@dataclass(frozen=True)
class Worker:
    """What a training loop needs to know of the worker that it runs in: its keywords of these names."""

    device: str = "cpu"
    rank: int = 0
    world_size: int = 1
    wrap: Callable[[Any], Any] = lambda module: module


@dataclass(frozen=True)
class Step:
    """A point of a training's curve, and how to go on from there."""

    final: bool
    point: Mapping[str, float]
    checkpoint: Callable[[], dict[str, Any]]
    model: Any


class TrainJob(Protocol):
    """One training: a picklable description that makes `artifact`."""

    @property
    def artifact(self) -> Artifact: ...
    @property
    def inputs(self) -> tuple[Artifact, ...]: ...
    @property
    def workers(self) -> int:
        """How many workers train it together: the same for all trainings of a stage."""
        ...

    def cost(self, sizes: Sizes) -> Cost: ...
    def steps(
        self, storage: Storage, worker: Worker, checkpoint: dict[str, Any] | None
    ) -> Iterator[Step]: ...
    def files(self, last: Step, curve: list[dict[str, float]]) -> JobOutput: ...
