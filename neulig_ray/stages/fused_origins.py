"""Fused origins: the mean of experts' towers, from which new tasks are fine-tuned (arXiv 2204.03044).

`fuse:seed-0:count+letters+signs` is the origin seed-0 with the mean of its experts of these tasks as its
image tower; of one task it is that expert, as intertraining takes it. The text tower, and so every head,
stays seed-0's.
"""

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from neulig_ray.cluster.cost import Cost, Sizes
from neulig_ray.cluster.jobs import Job, JobOutput, Needs
from neulig_ray.errors import InputError
from neulig_ray.experiment.combinations import collaborator
from neulig_ray.experiment.config import Experiment
from neulig_ray.merging import METHODS
from neulig_ray.merging.engine import merge_with
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.origin_files import origin_bytes
from neulig_ray.models.origin_source import HUB, OriginSource
from neulig_ray.stages.experts import ExpertJob, expert_job, load_expert
from neulig_ray.stages.heads import HeadJob, head_job
from neulig_ray.stages.imported_experts import ImportedExpert
from neulig_ray.stages.origins import FILE, Origin, clip_bytes, load_clip, plan_origin
from neulig_ray.stages.tasks import TaskJob
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import Task, find_task

VERSION = 1
# The origin may be `hf-hub:OWNER/NAME`, and have a name of its own in front, NAME=.
_PLACE: Final = re.compile(rf"(?P<origin>(?:[^:=]+=)?(?:{HUB})?[^:]+):(?P<tasks>.+)")


@dataclass
class Sources:
    """What fused origins are made of, each piece once; it is made before them, and not evaluated.

    `imported`: (arch, key) -> the experts that take the place of fine-tuning here too.
    """

    imported: Mapping[tuple[str, str], ImportedExpert] = field(default_factory=dict)
    tasks: dict[str, TaskJob] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    heads: dict[str, HeadJob] = field(default_factory=dict)
    experts: dict[str, ExpertJob] = field(default_factory=dict)

    def jobs(self) -> list[HeadJob | ExpertJob]:
        """The heads and experts; tasks and origins are counted with the experiment's own."""
        return [*self.heads.values(), *self.experts.values()]


@dataclass(frozen=True)
class FusionJob(Job):
    """The origin `base` with the mean of `experts` as its image tower."""

    artifact: Artifact
    arch: str
    base: Artifact
    experts: tuple[Artifact, ...]
    source: str

    @property
    def inputs(self) -> tuple[Artifact, ...]:
        return self.base, *self.experts

    @property
    def needs(self) -> Needs:
        return Needs(gpu=False)

    def cost(self, sizes: Sizes) -> Cost:
        return Cost(bytes=clip_bytes(self.arch))

    def make(self, storage: Storage) -> JobOutput:
        clip = copy.deepcopy(load_clip(storage, self.base, self.arch))
        states: Mapping[str, Any] = {e.label: load_expert(storage, e, self.arch) for e in self.experts}
        clip.visual.load_state_dict(merge_with(METHODS["fuse"], states))
        about = {"origin": f"fuse:{self.source}", "experts": [e.fingerprint for e in self.experts]}
        data = origin_bytes(clip, ARCHS[self.arch], about, half=False)
        return {FILE: data}, {"arch": self.arch, **about}


def plan_fused(
    experiment: Experiment,
    arch: str,
    source: OriginSource,
    prepare: Callable[[str, Task], TaskJob],
    sources: Sources,
) -> Origin:
    """The fused origin; what it needs first is added to `sources`. `prepare` gives a task's job.

    Raises InputError for a task twice, and for what tasks and origins raise it for.
    """
    found = _PLACE.fullmatch(source.place)
    entries = sorted(found["tasks"].split("+")) if found else []
    tasks = {entry: find_task(entry) for entry in entries} if all(entries) else {}
    if found is None or len({task.name for task in tasks.values()}) != len(entries):
        raise InputError(
            f"origin 'fuse:{source.place}': write fuse:ORIGIN:TASK+TASK, each task once, "
            "as in fuse:seed-0:count+letters"
        )
    base = plan_origin(experiment, arch, found["origin"])
    sources.origins[base.artifact.fingerprint] = base
    experts = []
    for entry, task in tasks.items():
        imported = sources.imported.get((arch, collaborator(task.name, base.name)))
        if imported is not None:
            experts.append(imported.artifact)
            continue
        data, head = prepare(entry, task), head_job(base, task)
        expert = expert_job(experiment, base, task.name, data.artifact, head.artifact)
        sources.tasks[data.artifact.fingerprint] = data
        sources.heads[head.artifact.fingerprint] = head
        sources.experts[expert.artifact.fingerprint] = expert
        experts.append(expert.artifact)
    inputs = {
        "base": base.artifact.fingerprint,
        "experts": [expert.fingerprint for expert in experts],
        "method_version": METHODS["fuse"].version,
    }
    artifact = Artifact.of("origin", f"{arch}.{source.name}", VERSION, inputs)
    job = FusionJob(artifact, arch, base.artifact, tuple(experts), source.place)
    return Origin(arch, source.name, job)
