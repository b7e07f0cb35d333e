"""Stage `heads`: the frozen zero-shot classifier of each task, written by its origin's text tower."""

from dataclasses import dataclass

from neulig_ray.cluster.jobs import Job, JobOutput, Needs
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.heads import zero_shot_head
from neulig_ray.stages.origins import Origin, load_clip
from neulig_ray.stages.tasks import array_bytes
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import Task

VERSION = 1
FILE = "head.npy"


@dataclass(frozen=True)
class HeadJob(Job):
    """The zero-shot head (C, d) of a task.

    It carries the names and templates: a task in a folder is not known on other nodes.
    """

    artifact: Artifact
    origin: Artifact
    arch: str
    task: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]

    @property
    def inputs(self) -> tuple[Artifact, ...]:
        return (self.origin,)

    @property
    def needs(self) -> Needs:
        return Needs(gpu=False)

    def make(self, storage: Storage) -> JobOutput:
        clip = load_clip(storage, self.origin, self.arch)
        head = zero_shot_head(clip, ARCHS[self.arch], self.class_names, self.templates)
        about = {"arch": self.arch, "task": self.task, "class_names": self.class_names}
        return {FILE: array_bytes(head.numpy())}, about


def head_job(origin: Origin, task: Task) -> HeadJob:
    texts = {"class_names": task.class_names, "templates": task.templates}
    inputs = {"origin": origin.artifact.fingerprint, **texts}
    artifact = Artifact.of("head", f"{origin.arch}.{task.name}@{origin.name}", VERSION, inputs)
    return HeadJob(artifact, origin.artifact, origin.arch, task.name, task.class_names, task.templates)
