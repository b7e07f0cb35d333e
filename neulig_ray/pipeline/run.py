"""One command's run over one storage: checks first, then stages, then what people look at."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Final

from rich.console import Console
from rich.markup import escape

from neulig_ray.cluster.progress import Reporter
from neulig_ray.cluster.run_context import RunContext
from neulig_ray.cluster.session import ClusterSession
from neulig_ray.errors import InputError, StageError
from neulig_ray.experiment.config import Experiment
from neulig_ray.paths import check_roots
from neulig_ray.pipeline.active_runs import announced
from neulig_ray.pipeline.earlier_names import earlier_names
from neulig_ray.pipeline.options import RunOptions
from neulig_ray.pipeline.outcome import Results
from neulig_ray.pipeline.pipeline import Pipeline, StageCount
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.pipeline.records import cells, expert_curves, trials
from neulig_ray.pipeline.results import write_results
from neulig_ray.pipeline.stages import up_to
from neulig_ray.plugins import load_plugins, read_plugins
from neulig_ray.redaction import redacted
from neulig_ray.report.published_rows import published
from neulig_ray.stages.checkpoint_families import check_families, family_of
from neulig_ray.stages.imported_experts import with_stored
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage
from neulig_ray.tracking.mlflow import RecordCounts, Tracker
from neulig_ray.tracking.store import local_uri

Announce = Callable[[Pipeline, Sequence[StageCount]], None]
_MLFLOW_AGAIN: Final = (5.0, 15.0, 30.0)  # seconds before each further attempt to record


class Session:
    """One experiment over one storage. Making it checks the input; nothing has been started when it refuses.

    `context`: the storage, the cluster, the reporter and what could not be made. Used as a context manager:
    leaving it ends the cluster that was started here.
    """

    def __init__(self, experiment: Experiment, options: RunOptions) -> None:
        options.check()
        plugins = read_plugins(experiment.plugins)
        load_plugins(plugins)
        self.options = options
        self.storage = Storage(options.storage)
        family = published(experiment.published).checkpoints if experiment.published else ""
        experiment = with_stored(experiment, self.storage, lambda source: family_of(source) == family)
        self.plan = make_plan(experiment)
        check_families(self.plan.imported, self.storage, family)
        # Progress goes to standard error: standard output is the table's, or the JSON's.
        self.reporter = Reporter(Console(stderr=True), quiet=options.quiet)
        self.cluster = ClusterSession(
            options.address, plugins, autoscaling=experiment.cluster.autoscaling, say=self._say_of_ray
        )
        self.context = RunContext(self.storage, self.cluster, self.reporter)
        self.pipeline = Pipeline(self.plan, self.context)
        self._open = ExitStack()
        self._unrecorded = False

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cluster.stop()
        self._open.__exit__(kind, error, traceback)

    @property
    def tracking_uri(self) -> str:
        """Where MLflow's records go."""
        return self._tracking()[0]

    @property
    def complete(self) -> bool:
        """Whether all that was asked for so far is made, and recorded."""
        return not self.context.failures and not self._unrecorded

    def run(self, command: str = "run", announce: Announce | None = None) -> Results | None:
        """Do all that `command` does: the stages up to its last, and what people look at afterwards.

        `run` writes results, MLflow's records and the report, `evaluate` the results alone; the commands that
        end earlier give None. `announce` is told of the stages before the first of them begins, where
        anything is missing.
        """
        self._run_stages(command, announce)
        if command not in ("run", "evaluate"):
            return None
        rows, about = write_results(self.plan, self.storage, self.context.failures)
        for warning in about["warnings"]:
            self.reporter.say(f"[yellow]warning[/]      {escape(warning)}")
        results = Results(self.plan.experiment.name, rows, about, self.storage)
        if command == "run":
            self._record(results)
            self.reporter.say(f"report       {results.report()}")
        return results

    def _run_stages(self, command: str, announce: Announce | None) -> None:
        self.storage.check_writable()
        self.storage.check_experiment(self.plan.experiment.name)
        counts = self.pipeline.count(up_to(command))
        if command == "run":
            self._tracker().check()
            if os.environ.get("MLFLOW_TRACKING_URI") and self.options.tracking_uri is None:
                self.reporter.say(
                    f"[bold]{'MLflow':<12}[/] MLFLOW_TRACKING_URI is set and not read: this is "
                    "recorded in the storage, or where --tracking-uri says"
                )
        if any(counted.missing for counted in counts):
            if line := earlier_names(self.plan, self.storage):
                self.reporter.say(f"[yellow]{'storage':<12}[/] {escape(line)}")
            self.cluster.check()
            check_roots(cache=not self.storage.local)
            self._open.enter_context(announced(self.plan, self.storage))
            if announce is not None:
                announce(self.pipeline, counts)
        self.pipeline.run(command)
        if command == "pretrain":
            for origin in self.plan.origins:
                if not self.storage.exists(origin.artifact):
                    continue  # its failure is told with the others
                self.reporter.say(f"{origin.label}: {self.storage.full(origin.artifact.path)}")

    def _record(self, results: Results) -> None:
        """Bring MLflow up to what the storage holds.

        A store that is away is tried again for a minute. The results do not depend on it: what it lacks then
        is told, and recorded by the same command later.
        """
        experts = expert_curves(self.plan, self.storage, self.context.failures, results.rows)
        found = trials(self.plan, self.storage), experts, cells(self.plan, self.storage)
        uri, name = self._tracking()[0], self.plan.experiment.name
        # Two drivers that record at once would both make the runs that they do not find.
        with self.storage.claim(Artifact.of("records", name, 1, {"experiment": name}), wait=True):
            recorded = self._patiently(lambda: self._tracker().record(results.rows, *found))
        if recorded is not None:
            self.reporter.say(
                f"[bold]MLflow[/]       {recorded.runs} runs, {recorded.written} of them written to "
                f"{redacted(uri)}"
            )

    def _patiently(self, record: Callable[[], RecordCounts]) -> RecordCounts | None:
        for wait in (*_MLFLOW_AGAIN, None):
            try:
                return record()
            except (InputError, StageError) as error:
                if isinstance(error, StageError) and error.__cause__ is None:  # not the store's doing
                    raise
                if wait is None or isinstance(error, InputError):  # which no waiting mends
                    self._unrecorded = True
                    self.reporter.console.print(
                        f"[red]MLflow[/]       {error}", highlight=False, soft_wrap=True
                    )
                    return None
                self.reporter.say(f"[yellow]MLflow[/]       is away, again in {wait:.0f} s: {error}")
            time.sleep(wait)
        return None

    def _say_of_ray(self, text: str) -> None:
        self.reporter.say(f"[bold]{'Ray':<12}[/] {escape(text)}")

    def _tracking(self) -> tuple[str, str | None]:
        if self.options.tracking_uri is not None:
            return self.options.tracking_uri, None
        return local_uri(self.storage.root)

    def _tracker(self) -> Tracker:
        uri, artifacts = self._tracking()
        return Tracker(uri, self.plan.experiment.name, artifacts)


def run(experiment: Experiment, options: RunOptions) -> Results:
    """The whole pipeline of an experiment, resumed where it has come to; what it measured.

    Raises InputError for input that no run could use, before anything is started, and StageError for what
    stops all of it; pieces that fail are among the results' `failures`.
    """
    with Session(experiment, options) as session:
        results = session.run()
    assert results is not None
    return results
