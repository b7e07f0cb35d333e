"""Stage `evaluations`: every method on the test split, a job for each piece that can be measured alone."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
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
from neulig_ray.ligand.data import Combination, task_of
from neulig_ray.merging.declare.ensemble import EnsembleMethod
from neulig_ray.merging.declare.gated import GatedMethod
from neulig_ray.merging.declare.measured import MeasuredMethod
from neulig_ray.merging.declare.method import MergingMethod
from neulig_ray.merging.declare.reference import ReferenceMethod
from neulig_ray.results.schema import failed
from neulig_ray.stages import evaluation_jobs
from neulig_ray.stages.ligands import Cell
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
    """What an experiment measures. `statistics`: of experts; `models`: merged ones, made apart."""

    evaluations: list[PlannedEvaluation]
    statistics: list[StatisticsJob]
    models: list[ModelJob]


def plan_evaluations(
    experiment: Experiment,
    methods: Sequence[MethodSpec],
    groups: Sequence[Group],
    cells: Sequence[Cell],
    models: Mapping[str, ArchModels],
) -> Evaluations:
    """All evaluations of an experiment, and the jobs whose artifacts some of them read."""
    planner = _Planner(experiment, models)
    planned: list[PlannedEvaluation] = []
    for spec in methods:
        match spec.method:
            case ReferenceMethod() as method:
                singles = ((arch, key) for arch, known in models.items() for key in known.experts)
                planned += [planner.reference(spec, method, arch, key) for arch, key in singles]
            case GatedMethod() as method:
                planned += [e for cell in cells for e in planner.gated(spec, method, cell)]
            case EnsembleMethod():
                planned += [planner.ensemble(spec, group, c) for group in groups for c in group.combinations]
            case MergingMethod() as method:
                planned += [
                    planner.merge(spec, method, group, c) for group in groups for c in group.combinations
                ]
            case other:
                raise TypeError(f"{other.name}: nothing says how a {type(other).__name__} is measured")
    return Evaluations(planned, list(planner.measuring.values()), planner.models)


class _Planner:
    def __init__(self, experiment: Experiment, models: Mapping[str, ArchModels]) -> None:
        self._e = experiment
        self._models = models
        self.measuring: dict[str, StatisticsJob] = {}  # fingerprint -> job
        self.models: list[ModelJob] = []

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
        }
        settings = {"key": key, **self._seed(spec)}
        return self._evaluation(
            spec, arch, key, common, (task,), evaluation_jobs.reference, known, inputs, settings
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

    def gated(self, spec: MethodSpec, method: GatedMethod, cell: Cell) -> list[PlannedEvaluation]:
        e, arch = self._e.evaluation, cell.group.arch
        planned = []
        for combination in cell.group.combinations:
            known = self._models[arch].restricted(combination)
            inputs = (cell.artifact, *known.inputs())
            base = {**self._combined(cell.group, combination), "alignment": cell.objective}
            settings = {"combination": combination, "ligand": cell.artifact, **self._seed(spec)}
            label = f"{cell.objective}.{','.join(combination)}"
            if method.selects:
                common = {**base, "granularity": "sample"}
                planned.append(
                    self._evaluation(
                        spec,
                        arch,
                        label,
                        common,
                        _tasks(combination),
                        evaluation_jobs.selection,
                        known,
                        inputs,
                        settings,
                    )
                )
                continue
            for granularity in e.granularities:
                options = {"granularity": granularity, "seed": self._e.seed}
                options |= {name: getattr(e, name) for name in RULES[granularity].settings if name != "seed"}
                common = {**base, "granularity": granularity}
                rule = RULES[granularity]
                evaluation = self._evaluation(
                    spec,
                    arch,
                    f"{label}.{granularity}",
                    common,
                    _tasks(combination),
                    evaluation_jobs.gated,
                    known,
                    inputs,
                    {**settings, **options},
                    rule.identity,
                )
                if rule.models is not None:
                    evaluation = self._made_before(
                        evaluation,
                        LigandModelsJob,
                        combination,
                        ligand=cell.artifact,
                        granularity=granularity,
                        **self._seed(spec),
                    )
                planned.append(evaluation)
        return planned

    def _seed(self, spec: MethodSpec) -> dict[str, int]:
        """The experiment's seed, where the method has an option of that name."""
        return {"seed": self._e.seed} if "seed" in spec.method.options else {}

    def _combined(self, group: Group, combination: Combination) -> dict[str, Any]:
        origins = [origin_of(key) for key in combination]
        same = len(set(origins)) == 1
        return {
            "origin": origins[0] if same else ",".join(origins),
            "n": group.n,
            "collaborators": ",".join(map(task_of, combination) if same else combination),
        }

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
