"""Everything that an experiment consists of, by name: computed from its configuration, before any work."""

import dataclasses
from dataclasses import dataclass

from neulig_ray.cluster.cost import Sizes
from neulig_ray.errors import InputError
from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.experiment.combinations import Group, collaborator, groups, origins_of
from neulig_ray.experiment.config import Experiment, check_values
from neulig_ray.experiment.method_spec import MethodSpec
from neulig_ray.merging.declare.gated import GatedMethod
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import image_size
from neulig_ray.models.origin_source import parse_origin
from neulig_ray.pipeline.names import check_names
from neulig_ray.pipeline.stages import STAGES
from neulig_ray.results.granularities import GRANULARITIES
from neulig_ray.stages.embeddings import EmbeddingJob, embedding_job
from neulig_ray.stages.evaluations import PlannedEvaluation, plan_evaluations
from neulig_ray.stages.experts import ExpertJob, expert_job
from neulig_ray.stages.fused_origins import FusionJob, Sources, plan_fused
from neulig_ray.stages.heads import HeadJob, head_job
from neulig_ray.stages.imported_experts import ImportedExpert, plan_imported
from neulig_ray.stages.ligands import Cell, plan_cell
from neulig_ray.stages.merged_models import ModelJob
from neulig_ray.stages.origins import Origin, plan_origin
from neulig_ray.stages.statistics import StatisticsJob
from neulig_ray.stages.tasks import TaskJob, task_job
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import Task, find_task


@dataclass(frozen=True)
class Plan:
    """The artifacts of an experiment, stage by stage; each names its inputs by their fingerprints."""

    experiment: Experiment
    tasks: dict[str, TaskJob]
    sources: Sources
    origins: list[Origin]
    heads: list[HeadJob]
    experts: list[ExpertJob]
    imported: list[ImportedExpert]
    embeddings: list[EmbeddingJob]
    models: dict[str, ArchModels]
    groups: list[Group]
    cells: list[Cell]
    statistics: list[StatisticsJob]
    merged: list[ModelJob]
    evaluations: list[PlannedEvaluation]

    @property
    def all_tasks(self) -> list[TaskJob]:
        """The experiment's tasks, and those of the experts that its fused origins are made of."""
        own = {job.artifact.fingerprint: job for job in self.tasks.values()}
        return list((own | self.sources.tasks).values())

    @property
    def all_origins(self) -> list[Origin]:
        """The experiment's origins after those that fused ones among them start from."""
        return list((self.sources.origins | {o.artifact.fingerprint: o for o in self.origins}).values())

    @property
    def base_origins(self) -> list[Origin]:
        """The origins that are not made of experts."""
        return [origin for origin in self.all_origins if not isinstance(origin.job, FusionJob)]

    @property
    def fused_origins(self) -> list[Origin]:
        return [origin for origin in self.all_origins if isinstance(origin.job, FusionJob)]

    def artifacts(self) -> dict[str, list[Artifact]]:
        """Stage -> its artifacts, in the order of the stages."""
        return {stage.name: [job.artifact for job in stage.jobs(self)] for stage in STAGES}

    def sizes(self, storage: Storage) -> Sizes:
        """How many images the plan's tasks have, or will have."""
        return Sizes(storage, {job.artifact.fingerprint: job for job in self.all_tasks})


def make_plan(experiment: Experiment) -> Plan:
    """Check the experiment and name all it consists of; raises InputError before anything is started."""
    check_names(experiment)
    check_values(experiment)
    e = experiment
    entries = {entry: find_task(entry) for entry in e.tasks}
    called = [task.name for task in entries.values()]
    if len(set(called)) != len(called):
        raise InputError(
            f"tasks {e.tasks}: two of them are called {max(called, key=called.count)!r}; put NAME= in front "
            "of one"
        )
    # From here on a folder or hub data set goes by its name alone; the plan keeps what was asked for.
    e = dataclasses.replace(e, tasks=tuple(called))
    methods = [MethodSpec.parse(text) for text in e.methods]
    if twice := [m for m in methods if methods.count(m) > 1]:
        raise InputError(f"methods name {twice[0].name!r} twice with the same options")

    size = max(image_size(ARCHS[arch]) for arch in e.archs)

    def prepare(entry: str, task: Task) -> TaskJob:
        return task_job(entry, e.task_seed, e.protocol, size=size, views=e.views, task=task)

    tasks = {task.name: prepare(entry, task) for entry, task in entries.items()}
    described = {task.name: task for task in entries.values()}
    imported = plan_imported(e)
    sources = Sources(imported)
    origins, heads, experts, embeddings, models = [], [], [], [], {}
    for arch in e.archs:
        known = ArchModels(arch)
        for given in origins_of(e, arch):
            source = parse_origin(given)
            if source.kind == "fused":
                origin = plan_fused(e, arch, source, prepare, sources)
            else:
                origin = plan_origin(e, arch, given)
            if twins := [n for n, a in known.origins.items() if a.fingerprint == origin.artifact.fingerprint]:
                raise InputError(
                    f"origins {twins[0]!r} and {origin.name!r} of {arch} are the same model: leave one out"
                )
            origins.append(origin)
            known.origins[origin.name] = origin.artifact
            for task, data in tasks.items():
                key = collaborator(task, origin.name)
                head = head_job(origin, described[task])
                heads.append(head)
                known.heads[key] = head.artifact
                if (arch, key) in imported:
                    known.experts[key] = imported[arch, key].artifact
                    continue
                expert = expert_job(e, origin, task, data.artifact, head.artifact)
                experts.append(expert)
                known.experts[key] = expert.artifact
        looking = {**known.experts, **known.origins}
        for key, model in looking.items():
            for task, data in tasks.items():
                job = embedding_job(arch, model, task, data.artifact)
                embeddings.append(job)
                known.embeddings[key, task] = job.artifact
        known.data.update({task: job.artifact for task, job in tasks.items()})
        models[arch] = known

    found = groups(e)
    cells = []
    gated = [m.method for m in methods if isinstance(m.method, GatedMethod)]
    if gated and not e.alignment:
        raise InputError(
            f"alignment is empty, but {gated[0].name}, which needs a ligand, is among the methods: "
            "use sup, semi or both"
        )
    if merging := [m.name for m in gated if not m.selects and not e.evaluation.granularities]:
        raise InputError(
            f"evaluation.granularities is empty, but {merging[0]} is measured at each of them: "
            f"use some of {', '.join(GRANULARITIES)}"
        )
    if gated:
        cells = [
            plan_cell(e, group, objective, models[group.arch]) for group in found for objective in e.alignment
        ]
    measured = plan_evaluations(e, methods, found, cells, models)
    return Plan(
        experiment=experiment,
        tasks=tasks,
        sources=sources,
        origins=origins,
        heads=heads,
        experts=experts,
        imported=list(imported.values()),
        embeddings=embeddings,
        models=models,
        groups=found,
        cells=cells,
        statistics=measured.statistics,
        merged=measured.models,
        evaluations=measured.evaluations,
    )
