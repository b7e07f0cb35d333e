"""Everything that an experiment consists of, by name: computed from its configuration, before any work."""

import dataclasses
import itertools
from collections.abc import Sequence
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
from neulig_ray.stages.block_features import BlockFeatureJob, block_feature_job
from neulig_ray.stages.embeddings import EmbeddingJob, embedding_job
from neulig_ray.stages.evaluations import PlannedEvaluation, plan_evaluations
from neulig_ray.stages.experts import ExpertJob, expert_job
from neulig_ray.stages.fused_origins import FusionJob, Sources, plan_fused
from neulig_ray.stages.heads import HeadJob, head_job
from neulig_ray.stages.imported_experts import ImportedExpert, plan_imported
from neulig_ray.stages.joint import JointJob
from neulig_ray.stages.ligand_options import gate_of
from neulig_ray.stages.ligand_variants import VariantJob, plan_variants
from neulig_ray.stages.ligands import Cell, plan_cells
from neulig_ray.stages.merged_models import ModelJob
from neulig_ray.stages.origins import Origin, plan_origin
from neulig_ray.stages.statistics import StatisticsJob
from neulig_ray.stages.tasks import TaskJob, task_job
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import Task, find_task


@dataclass(frozen=True)
class Plan:
    """The artifacts of an experiment, stage by stage; each names its inputs by their fingerprints.

    `models`: seed of the experts -> arch -> the artifacts that these are.
    """

    experiment: Experiment
    tasks: dict[str, TaskJob]
    sources: Sources
    origins: list[Origin]
    heads: list[HeadJob]
    experts: list[ExpertJob]
    imported: list[ImportedExpert]
    embeddings: list[EmbeddingJob | BlockFeatureJob]
    models: dict[int, dict[str, ArchModels]]
    groups: list[Group]
    cells: list[Cell]
    variants: list[VariantJob]
    statistics: list[StatisticsJob]
    merged: list[ModelJob]
    evaluations: list[PlannedEvaluation]
    joint: list[JointJob]

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
    gated = [m for m in methods if isinstance(m.method, GatedMethod)]
    _check_gated(e, gated)
    looks_at_blocks = any(gate_of(m).sees == "origin-blocks" for m in gated)
    imported = plan_imported(e)
    sources = Sources(imported)
    origins: dict[Artifact, Origin] = {}
    heads: dict[Artifact, HeadJob] = {}
    experts: dict[Artifact, ExpertJob] = {}
    embeddings: dict[Artifact, EmbeddingJob | BlockFeatureJob] = {}
    looking: dict[int, dict[str, ArchModels]] = {}  # with the block features that some gates see
    for own, arch in itertools.product(e.by_seed, e.archs):
        known = ArchModels(arch)
        for given in origins_of(own, arch):
            source = parse_origin(given)
            if source.kind == "fused":
                origin = plan_fused(own, arch, source, prepare, sources)
            else:
                origin = plan_origin(own, arch, given)
            if twins := [n for n, a in known.origins.items() if a.fingerprint == origin.artifact.fingerprint]:
                raise InputError(
                    f"origins {twins[0]!r} and {origin.name!r} of {arch} are the same model: leave one out"
                )
            origins.setdefault(origin.artifact, origin)
            known.origins[origin.name] = origin.artifact
            for task, data in tasks.items():
                key = collaborator(task, origin.name)
                head = head_job(origin, described[task])
                heads.setdefault(head.artifact, head)
                known.heads[key] = head.artifact
                if (arch, key) in imported:
                    known.experts[key] = imported[arch, key].artifact
                    continue
                expert = expert_job(own, origin, task, data.artifact, head.artifact)
                experts.setdefault(expert.artifact, expert)
                known.experts[key] = expert.artifact
        for key, model in {**known.experts, **known.origins}.items():
            for task, data in tasks.items():
                job = embedding_job(arch, model, task, data.artifact)
                embeddings.setdefault(job.artifact, job)
                known.embeddings[key, task] = job.artifact
                if looks_at_blocks and key in known.origins:
                    features = block_feature_job(arch, model, task, data.artifact)
                    embeddings.setdefault(features.artifact, features)
                    known.blocks[key, task] = features.artifact
        known.data.update({task: job.artifact for task, job in tasks.items()})
        looking.setdefault(own.seed, {})[arch] = known

    models = {
        seed: {arch: known.without_blocks() for arch, known in own.items()} for seed, own in looking.items()
    }
    found = groups(e)
    cells: list[Cell] = []
    variants: list[VariantJob] = []
    if gated:
        for group, objective in itertools.product(found, e.alignment):
            of_arch = {seed: known[group.arch] for seed, known in models.items()}
            cells += plan_cells(e, group, objective, of_arch)
    evaluations: dict[tuple[Artifact, int], PlannedEvaluation] = {}
    statistics: dict[Artifact, StatisticsJob] = {}
    merged: dict[Artifact, ModelJob] = {}
    joint: dict[Artifact, JointJob] = {}
    for own in e.by_seed:
        mine = [cell for cell in cells if cell.expert_seed == own.seed]
        others = plan_variants(own, gated, mine, looking[own.seed])
        variants += others
        measured = plan_evaluations(own, methods, found, [*mine, *others], looking[own.seed], imported)
        for evaluation in measured.evaluations:  # what no seed has a part in is the same for all
            beside = evaluation.job.artifact, evaluation.common["expert_seed"]
            evaluations.setdefault(beside, evaluation)
        statistics |= {job.artifact: job for job in measured.statistics}
        merged |= {job.artifact: job for job in measured.models}
        joint |= {job.artifact: job for job in measured.joint}
    return Plan(
        experiment=experiment,
        tasks=tasks,
        sources=sources,
        origins=list(origins.values()),
        heads=list(heads.values()),
        experts=list(experts.values()),
        imported=list(imported.values()),
        embeddings=list(embeddings.values()),
        models=models,
        groups=found,
        cells=cells,
        variants=variants,
        statistics=list(statistics.values()),
        merged=list(merged.values()),
        evaluations=list(evaluations.values()),
        joint=list(joint.values()),
    )


def _check_gated(e: Experiment, gated: Sequence[MethodSpec]) -> None:
    """Raises InputError where methods that need a ligand have no objective, or no granularity to merge at."""
    if gated and not e.alignment:
        raise InputError(
            f"alignment is empty, but {gated[0].name}, which needs a ligand, is among the methods: "
            "use sup, semi, route or several"
        )
    merging = [m.name for m in gated if isinstance(m.method, GatedMethod) and not m.method.selects]
    if merging and not e.evaluation.granularities:
        raise InputError(
            f"evaluation.granularities is empty, but {merging[0]} is measured at each of them: "
            f"use some of {', '.join(GRANULARITIES)}"
        )
