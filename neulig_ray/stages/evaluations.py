"""Stage `evaluations`: every method on the test split, a job for each piece that can be measured alone."""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from neulig_ray.cluster.run_context import Failures
from neulig_ray.evaluation.granularity import RULES
from neulig_ray.evaluation.rows import Row
from neulig_ray.experiment.catalog import ArchModels
from neulig_ray.experiment.combinations import Group, origin_of
from neulig_ray.experiment.config import Experiment
from neulig_ray.experiment.method_spec import MethodSpec
from neulig_ray.ligand.data import Combination, combination_key, task_of
from neulig_ray.merging.declare.ensemble import EnsembleMethod
from neulig_ray.merging.declare.gated import GatedMethod
from neulig_ray.merging.declare.measured import MeasuredMethod
from neulig_ray.merging.declare.method import MergingMethod
from neulig_ray.merging.declare.reference import ReferenceMethod
from neulig_ray.results.schema import failed
from neulig_ray.stages import evaluation_jobs
from neulig_ray.stages.joint import JointJob, joint_job
from neulig_ray.stages.ligand_options import Ligands, label, serves, without_gate
from neulig_ray.stages.merged_models import VERSION as MODEL_VERSION
from neulig_ray.stages.merged_models import LigandModelsJob, MethodModelsJob, ModelJob
from neulig_ray.stages.statistics import StatisticsJob, statistics_job
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage

VERSION = 1


@dataclass(frozen=True)
class PlannedEvaluation:
    """A job, and what its rows have in common whether it succeeds or fails."""

    job: evaluation_jobs.EvaluationJob
    common: Mapping[str, Any]
    tasks: tuple[str, ...]


class Evaluations(NamedTuple):
    """What an experiment measures. `statistics`: of experts; `models`: merged ones, made apart; `joint`:
    networks that are fine-tuned on all tasks of a combination.
    """

    evaluations: list[PlannedEvaluation]
    statistics: list[StatisticsJob]
    models: list[ModelJob]
    joint: list[JointJob]


def plan_evaluations(
    experiment: Experiment,
    methods: Sequence[MethodSpec],
    groups: Sequence[Group],
    ligands: Sequence[Ligands],
    models: Mapping[str, ArchModels],
    imported: Collection[tuple[str, str]] = (),
) -> Evaluations:
    """All evaluations of an experiment with one seed, and the jobs whose artifacts some of them read.

    `ligands`: those beside its experts. `imported`: (arch, collaborator) of experts that no seed made.
    """
    planner = _Planner(experiment, models, imported)
    planned: list[PlannedEvaluation] = []
    for spec in methods:
        match spec.method:
            case ReferenceMethod(of="joint"):
                planned += [planner.joint(spec, group, c) for group in groups for c in group.combinations]
            case ReferenceMethod() as method:
                singles = ((arch, key) for arch, known in models.items() for key in known.experts)
                planned += [planner.reference(spec, method, arch, key) for arch, key in singles]
            case GatedMethod() as method:
                mine = [own for own in ligands if serves(own, spec, experiment.alignment)]
                planned += [e for own in mine for e in planner.gated(without_gate(spec), method, own)]
            case EnsembleMethod():
                planned += [planner.ensemble(spec, group, c) for group in groups for c in group.combinations]
            case MergingMethod() as method:
                planned += [
                    planner.merge(spec, method, group, c) for group in groups for c in group.combinations
                ]
            case other:
                raise TypeError(f"{other.name}: nothing says how a {type(other).__name__} is measured")
    trainings = list(planner.trainings.values())
    return Evaluations(planned, list(planner.measuring.values()), planner.models, trainings)


class _Planner:
    def __init__(
        self,
        experiment: Experiment,
        models: Mapping[str, ArchModels],
        imported: Collection[tuple[str, str]],
    ) -> None:
        self._e = experiment
        self._looking = models
        self._models = {arch: known.without_blocks() for arch, known in models.items()}
        self._imported = imported
        self.measuring: dict[str, StatisticsJob] = {}  # fingerprint -> job
        self.models: list[ModelJob] = []
        self.trainings: dict[str, JointJob] = {}  # fingerprint -> job

    def reference(self, spec: MethodSpec, method: ReferenceMethod, arch: str, key: str) -> PlannedEvaluation:
        origin, task = origin_of(key), task_of(key)
        of_origin = method.of == "origin"
        known = self._models[arch].restricted([key])
        model = known.origins[origin] if of_origin else known.experts[key]
        look = (origin if of_origin else key, task)
        inputs = (model, known.heads[key], known.embeddings[look])
        known = dataclasses.replace(known, embeddings={look: known.embeddings[look]})
        common = {
            "origin": origin,
            "n": 0 if of_origin else 1,
            "collaborators": "" if of_origin else task,
            "granularity": "global",
            "expert_seed": self._e.drawn_by if of_origin else self._made_by(arch, [key]),
        }
        settings = {"key": key, **self._seed(spec)}
        return self._evaluation(
            spec, arch, key, common, (task,), evaluation_jobs.reference, known, inputs, settings
        )

    def joint(self, spec: MethodSpec, group: Group, combination: Combination) -> PlannedEvaluation:
        """Of a combination of one origin; for others the evaluation says that there is no such network."""
        known = dataclasses.replace(self._models[group.arch].restricted(combination), embeddings={})
        network = None
        if len(known.origins) == 1:
            job = joint_job(self._e, known, combination)
            network = self.trainings.setdefault(job.artifact.fingerprint, job).artifact
        return self._evaluation(
            spec,
            group.arch,
            combination_key(combination),
            {**self._combined(group, combination), "granularity": "global"},
            _tasks(combination),
            evaluation_jobs.joint,
            known,
            (*known.heads.values(), *((network,) if network else ())),
            {"combination": combination, **self._seed(spec)},
            network=network,
        )

    def ensemble(self, spec: MethodSpec, group: Group, combination: Combination) -> PlannedEvaluation:
        known = self._models[group.arch].restricted(combination)
        common = {**self._combined(group, combination), "granularity": "global"}
        return self._evaluation(
            spec,
            group.arch,
            ",".join(combination),
            common,
            _tasks(combination),
            evaluation_jobs.ensemble,
            known,
            known.inputs(),
            {"combination": combination, **self._seed(spec)},
        )

    def merge(
        self, spec: MethodSpec, method: MergingMethod, group: Group, combination: Combination
    ) -> PlannedEvaluation:
        e = self._e
        known = self._models[group.arch].restricted(combination)
        settings: dict[str, Any] = {
            "combination": combination,
            "batchnorm_images": e.evaluation.batchnorm_images,
            "batch_size": e.evaluation.batch_size,
            "seed": e.seed,
        }
        if spec.grid or method.looks_at_images:
            settings["val_images"] = e.search.val_images
        drawn = {"drawn_by": e.drawn_by} if e.drawn_by != e.seed else {}
        settings |= drawn
        measured = isinstance(method, MeasuredMethod)
        statistics = tuple(self.statistics(spec, group.arch, key).artifact for key in combination if measured)
        evaluation = self._evaluation(
            spec,
            group.arch,
            ",".join(combination),
            {**self._combined(group, combination), "granularity": method.planned_granularity},
            _tasks(combination),
            evaluation_jobs.merge,
            known,
            (*known.inputs(), *statistics),
            settings,
            statistics=statistics,
        )
        if not (method.storable and (method.slow or spec.grid)):
            return evaluation
        return self._made_before(
            evaluation,
            MethodModelsJob,
            combination,
            batchnorm_images=e.evaluation.batchnorm_images,
            batch_size=e.evaluation.batch_size,
            seed=e.seed,
            val_images=settings.get("val_images", 0),
            statistics=statistics,
            mixed=evaluation.job.mixed,
            **drawn,
        )

    def _made_before(
        self, evaluation: PlannedEvaluation, kind: type[ModelJob], combination: Combination, **more: Any
    ) -> PlannedEvaluation:
        """The evaluation with its models made by a job of their own. Its name is the same."""
        job = evaluation.job
        identity = {"evaluation": job.artifact.fingerprint}
        artifact = Artifact.of("model", job.artifact.label, MODEL_VERSION, identity)
        self.models.append(kind(artifact, job.spec, job.models, combination, job.reads, job.artifact, **more))
        reading = dataclasses.replace(
            job, settings={**job.settings, "model": artifact}, reads=(*job.reads, artifact)
        )
        return dataclasses.replace(evaluation, job=reading)

    def statistics(self, spec: MethodSpec, arch: str, key: str) -> StatisticsJob:
        job = statistics_job(self._e, spec, self._models[arch], key)
        return self.measuring.setdefault(job.artifact.fingerprint, job)

    def gated(self, spec: MethodSpec, method: GatedMethod, ligands: Ligands) -> list[PlannedEvaluation]:
        pairs = [(c, seed) for c in ligands.group.combinations for seed in ligands.seeds]
        if method.selects:
            return [self._selection(spec, ligands, *pair) for pair in pairs]
        every = itertools.product(pairs, self._e.evaluation.granularities)
        return [self._served(spec, ligands, *pair, granularity) for pair, granularity in every]

    def _selection(
        self, spec: MethodSpec, ligands: Ligands, combination: Combination, seed: int
    ) -> PlannedEvaluation:
        known, common, settings, name = self._weighed(spec, ligands, combination, seed)
        return self._evaluation(
            spec,
            ligands.group.arch,
            name,
            {**common, "granularity": "sample"},
            _tasks(combination),
            evaluation_jobs.selection,
            known,
            (ligands.artifact, *known.inputs(), *known.blocks.values()),
            {**settings, **({"seed": seed} if "seed" in spec.method.options else {})},
        )

    def _served(
        self, spec: MethodSpec, ligands: Ligands, combination: Combination, seed: int, granularity: str
    ) -> PlannedEvaluation:
        """What the ligand of one seed merges at one granularity."""
        e, rule = self._e, RULES[granularity]
        known, common, settings, name = self._weighed(spec, ligands, combination, seed)
        given = {
            "sample_images": e.evaluation.sample_images,
            "batch_size": e.evaluation.batch_size,
            "order_seeds": orders_of(seed, e.ligand.seeds or e.seeds or (e.seed,), e.evaluation.order_seeds),
        }
        options = {name: given[name] for name in rule.settings if name in given}
        evaluation = self._evaluation(
            spec,
            ligands.group.arch,
            f"{name}.{granularity}",
            {**common, "granularity": granularity},
            _tasks(combination),
            evaluation_jobs.gated,
            known,
            (ligands.artifact, *known.inputs(), *known.blocks.values()),
            {**settings, "granularity": granularity, "seed": e.drawn_by, **options},
            rule.identity,
        )
        if rule.models is None:
            return evaluation
        more = {"ligand": ligands.artifact, "granularity": granularity, "seed": seed}
        return self._made_before(evaluation, LigandModelsJob, combination, **more)

    def _weighed(
        self, spec: MethodSpec, ligands: Ligands, combination: Combination, seed: int
    ) -> tuple[ArchModels, dict[str, Any], dict[str, Any], str]:
        """Models, columns, settings and label of what the ligand of one seed weighs."""
        models = self._looking if ligands.gate.sees == "origin-blocks" else self._models
        known = models[ligands.group.arch].restricted(combination)
        common = {
            **self._combined(ligands.group, combination),
            "alignment": ligands.objective,
            "seed": seed,
            "options": {**dict(spec.options), **ligands.gate.identity},
        }
        settings = {"combination": combination, "ligand": ligands.artifact, "ligand_seed": seed}
        several = f".ligand{seed}" if len(ligands.seeds) > 1 else ""
        return known, common, settings, f"{label(ligands)}.{','.join(combination)}{several}"

    def _seed(self, spec: MethodSpec) -> dict[str, int]:
        """The experiment's seed, where the method has an option of that name."""
        return {"seed": self._e.seed} if "seed" in spec.method.options else {}

    def _combined(self, group: Group, combination: Combination) -> dict[str, Any]:
        origins = [origin_of(key) for key in combination]
        same = len(set(origins)) == 1
        return {
            "origin": origins[0] if same else ",".join(origins),
            "n": group.n,
            "expert_seed": self._made_by(group.arch, itertools.chain(*group.combinations)),
            "collaborators": ",".join(map(task_of, combination) if same else combination),
        }

    def _made_by(self, arch: str, keys: Iterable[str]) -> int:
        """The seed that has a part in some of these experts; 0 where all of them are imported."""
        return self._e.seed if any((arch, key) not in self._imported for key in keys) else 0

    def _evaluation(
        self,
        spec: MethodSpec,
        arch: str,
        label: str,
        common: Mapping[str, Any],
        tasks: tuple[str, ...],
        measure: Callable[..., evaluation_jobs.MeasuredRows],
        models: ArchModels,
        inputs: tuple[Artifact, ...],
        settings: Mapping[str, Any],
        rule: Mapping[str, str] = MappingProxyType({}),
        **more: Any,
    ) -> PlannedEvaluation:
        threads = self._e.cluster.cpus_per_worker
        identity = {
            **spec.identity,
            "arch": arch,
            "protocol": self._e.protocol,
            "threads": threads,
            "inputs": [a.fingerprint for a in inputs],
            **settings,
            **rule,
        }
        artifact = Artifact.of("evaluation", f"{spec.name}.{arch}.{label}", VERSION, identity)
        shared = {
            "arch": arch,
            "method": spec.name,
            "options": dict(spec.options),
            "seed": self._e.seed,
            "protocol": self._e.protocol,
            "split": "test",
            "alignment": "",
            "buffers": "",
            "fingerprint": artifact.fingerprint,
            **common,
        }
        job = evaluation_jobs.EvaluationJob(
            artifact,
            measure,
            spec,
            models,
            {**settings, **more},
            inputs,
            tasks,
            mixed="," in common["origin"],
        )
        return PlannedEvaluation(job, shared, tasks)


def orders_of(seed: int, seeds: Sequence[int], orders: int) -> tuple[int, ...]:
    """The shuffles that a ligand is measured in: `orders` in all, dealt out over the seeds of its cell."""
    place = seeds.index(seed)
    return tuple(order for order in range(orders) if order % len(seeds) == place) or (place % orders,)


def _tasks(combination: Combination) -> tuple[str, ...]:
    return tuple(map(task_of, combination))


def evaluation_rows(evaluation: PlannedEvaluation, storage: Storage, failures: Failures) -> list[Row]:
    """The results rows of an evaluation: what it measured, or why it could not."""
    reason = failures.get(evaluation.job.artifact.fingerprint)
    if reason is not None:
        if model := evaluation.job.settings.get("model"):  # told as if the evaluation itself had made it
            reason = failures.get(model.fingerprint, reason)
        return [{**evaluation.common, "task": task, "status": failed(reason)} for task in evaluation.tasks]
    rows: list[Row] = storage.load_json(evaluation.job.artifact, evaluation_jobs.ROWS_FILE)
    return [{**evaluation.common, **row} for row in rows]
