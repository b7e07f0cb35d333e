"""The pipeline of an experiment: tasks, origins, heads, experts, embeddings, ligands, evaluations."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from rich.markup import escape

from neulig_ray.cluster.jobs import Failures, Job, Resources, run_stage, told
from neulig_ray.cluster.progress import Reporter
from neulig_ray.cluster.session import Cluster, Need
from neulig_ray.cluster.train.job import TrainJob
from neulig_ray.cluster.train.run import run_trainings
from neulig_ray.errors import StageError
from neulig_ray.paths import data_root
from neulig_ray.pipeline.costs import EVALUATING, work
from neulig_ray.pipeline.plan import Plan
from neulig_ray.stages.imported_experts import store_expert
from neulig_ray.stages.ligands import run_search
from neulig_ray.stages.origins import store_file
from neulig_ray.stages.tasks import fetch_files
from neulig_ray.storage.storage import Storage

# What each command of the pipeline ends with.
LAST_STAGE: Final = {
    "pretrain": "origins",
    "finetune": "experts",
    "embed": "embeddings",
    "search": "ligands",
    "evaluate": "evaluations",
    "run": "evaluations",
}
STAGES: Final = ("tasks", "origins", "heads", "experts", "embeddings", "ligands", "statistics", "evaluations")
ON_CPU: Final = ("tasks", "heads", "ligands")  # stages whose workers take no GPU


class Pipeline:
    """Runs the stages of a plan in their order. What failed, and why, stands in `failures`."""

    def __init__(self, plan: Plan, storage: Storage, cluster: Cluster, reporter: Reporter) -> None:
        self.plan = plan
        self.storage = storage
        self.cluster = cluster
        self.reporter = reporter
        self.failures: Failures = {}
        c = plan.experiment.cluster
        self.resources = Resources(c.cpus_per_worker, c.gpus_per_worker, c.max_failures)
        self.on_cpu = Resources(c.cpus_per_worker, 0.0, c.max_failures)
        self.evaluating = Resources(c.cpus_per_worker, c.evaluation_gpus, c.max_failures)
        self.trials = Resources(c.trial_cpus, 0.0, c.max_failures)

    def run(self, last: str) -> None:
        """Run up to and with the stage `last`; failed pieces do not stop their siblings.

        Raises InputError before anything is started for a damaged file of an origin or expert, for data that
        is not there and cannot be fetched, or for too small a cluster.
        """
        for job in self.plan.all_tasks:
            if job.on_driver and not self.storage.exists(job.artifact):
                place = escape(f"{job.arguments['entry']} (data root {data_root()})")
                self.reporter.say(f"[bold]{'data':<12}[/] {place}")
                fetch_files(job)
        for origin in self.plan.all_origins:
            store_file(origin, self.storage)
        for expert in self.plan.imported:
            store_expert(expert, self.storage)
        self.cluster.needs = self._needs(last)
        stages: dict[str, Callable[[], None]] = {
            "tasks": self._tasks,
            "origins": self._origins,
            "heads": self._heads,
            "experts": self._experts,
            "embeddings": self._embeddings,
            "ligands": self._ligands,
            "statistics": self._statistics,
            "evaluations": self._evaluations,
        }
        for stage in STAGES[: STAGES.index(last) + 1]:
            try:
                stages[stage]()
            except Exception as error:
                if not type(error).__module__.startswith("ray."):
                    raise
                raise StageError(f"stage {stage!r}: Ray gave up: {told(error)}") from error

    def takes(self, stage: str) -> tuple[int, Resources]:
        """What one piece of a stage asks of the cluster at once: how many workers, and what each takes."""
        workers = {"experts": self.plan.experiment.finetune.workers}
        if any(origin.job for origin in self.plan.all_origins):
            workers["origins"] = self.plan.experiment.pretrain.workers
        if self.plan.sources.experts:
            workers["origins"] = max(workers["experts"], workers.get("origins", 1))
        if stage == "ligands":
            return 1, self.trials
        if stage in EVALUATING:
            return 1, self.evaluating
        return workers.get(stage, 1), self.on_cpu if stage in ON_CPU else self.resources

    def _needs(self, last: str) -> list[Need]:
        needs = []
        for stage in STAGES[: STAGES.index(last) + 1]:
            count, each = self.takes(stage)
            what = f"stage {stage!r}" + (f" ({count} workers)" if count > 1 else "")
            needs.append(Need(what, count * each.cpus, count * each.gpus))
        return needs

    def _tasks(self) -> None:
        self._small("tasks", self.plan.all_tasks, self.on_cpu)
        if any(job.artifact.fingerprint in self.failures for job in self.plan.all_tasks):
            raise StageError("; ".join(self.failures.values()))
        for job in self.plan.all_tasks:
            for note in self.storage.manifest(job.artifact)["info"]["notes"]:
                self.reporter.say(f"[bold]{'tasks':<12}[/] {job.artifact.label}: {escape(note)}")

    def _origins(self) -> None:
        sources = self.plan.sources
        if fetched := [origin.fetch for origin in self.plan.all_origins if origin.fetch is not None]:
            self._small("origins", fetched, self.on_cpu)
        if trained := [origin.job for origin in self.plan.all_origins if origin.job is not None]:
            self._train("origins", trained, self.plan.experiment.pretrain.workers)
        if sources.experts:
            self._small("sources", list(sources.heads.values()), self.on_cpu)
            self._train("sources", list(sources.experts.values()), self.plan.experiment.finetune.workers)
        if sources.fusions:
            self._small("origins", sources.fusions, self.on_cpu)

    def _heads(self) -> None:
        self._small("heads", self.plan.heads, self.on_cpu)

    def _experts(self) -> None:
        if self.plan.experts:
            self._train("experts", self.plan.experts, self.plan.experiment.finetune.workers)

    def _embeddings(self) -> None:
        self._small("embeddings", self.plan.embeddings, self.resources)

    def _ligands(self) -> None:
        if self.plan.cells:
            run_search(
                self.plan.cells,
                self.plan.models,
                self.storage,
                self.cluster,
                self.trials,
                self.reporter,
                self.failures,
            )

    def _statistics(self) -> None:
        if self.plan.statistics:
            self._small("statistics", self.plan.statistics, self.evaluating)

    def _evaluations(self) -> None:
        jobs = [evaluation.job for evaluation in self.plan.evaluations]
        self._small(
            "evaluations", jobs, self.evaluating, lambda: work(self.plan, self.storage, "evaluations")
        )

    def _small(
        self,
        name: str,
        jobs: Sequence[Job],
        resources: Resources,
        costs: Callable[[], Mapping[str, float]] | None = None,
    ) -> None:
        run_stage(name, jobs, self.storage, self.cluster, resources, self.reporter, self.failures, costs)

    def _train(self, name: str, jobs: Sequence[TrainJob], workers: int) -> None:
        run_trainings(
            name,
            jobs,
            self.storage,
            self.cluster,
            self.resources,
            workers,
            self.plan.experiment.cluster.max_groups,
            self.reporter,
            self.failures,
        )
