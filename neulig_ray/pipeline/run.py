"""One command's run over one storage: checks first, then stages, then what people look at."""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final

import pandas as pd
from rich.console import Console
from rich.markup import escape

from neulig_ray.cli.options import Options
from neulig_ray.cli.run.plan_table import plan_table
from neulig_ray.cluster.progress import Reporter
from neulig_ray.cluster.run_context import RunContext
from neulig_ray.cluster.session import Cluster
from neulig_ray.errors import InputError, StageError
from neulig_ray.experiment.config import Experiment
from neulig_ray.outputs import write_output
from neulig_ray.paths import check_roots
from neulig_ray.pipeline.active_runs import announced
from neulig_ray.pipeline.pipeline import Pipeline
from neulig_ray.pipeline.plan import make_plan
from neulig_ray.pipeline.records import cells, expert_curves, trials
from neulig_ray.pipeline.results import write_results
from neulig_ray.pipeline.stages import up_to
from neulig_ray.plugins import load_plugins, read_plugins
from neulig_ray.redaction import redacted
from neulig_ray.report.html import render
from neulig_ray.report.published_rows import published
from neulig_ray.stages.checkpoint_families import check_families, family_of
from neulig_ray.stages.imported_experts import with_stored
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.layout import Top
from neulig_ray.storage.storage import Storage
from neulig_ray.tracking.mlflow import Recorded, Tracker
from neulig_ray.tracking.store import local_uri

_MLFLOW_AGAIN: Final = (5.0, 15.0, 30.0)  # seconds before each further attempt to record


class Session:
    """Everything of one run. Entering it checks the input; nothing has been started when it refuses."""

    def __init__(self, experiment: Experiment, options: Options) -> None:
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
        self.cluster = Cluster(
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

    def print_plan(self) -> None:
        """What a run would do: stages, jobs, what the storage has of them, what each takes of the cluster."""
        from neulig_ray.cli.run.dry_run import print_costs  # imports open_clip

        console = Console()
        console.print(plan_table(self.pipeline)[0])
        for group in self.plan.groups:
            console.print(f"{group.arch} {group.origin} n={group.n}: {len(group.combinations)} combinations")
        print_costs(console, self.plan, self.storage)
        console.print(f"storage {self.storage.shown}, MLflow {redacted(self._tracking()[0])}", soft_wrap=True)

    def run(self, command: str) -> None:
        """Run the pipeline up to what `command` ends with."""
        self.storage.check_writable()
        self.storage.check_experiment(self.plan.experiment.name)
        table, missing = plan_table(self.pipeline, up_to(command))
        if command == "run":
            self._tracker().check()
            if os.environ.get("MLFLOW_TRACKING_URI") and self.options.tracking_uri is None:
                self.reporter.say(
                    f"[bold]{'MLflow':<12}[/] MLFLOW_TRACKING_URI is set and not read: this is "
                    "recorded in the storage, or where --tracking-uri says"
                )
        if missing:
            self.cluster.check()
            check_roots(cache=not self.storage.local)
            self._open.enter_context(announced(self.plan, self.storage))
            if not self.options.quiet:
                self.reporter.console.print(table)
        self.pipeline.run(command)
        if command == "pretrain":
            for origin in self.plan.origins:
                if not self.storage.exists(origin.artifact):
                    continue  # its failure is told with the others
                self.reporter.say(f"{origin.label}: {self.storage.full(origin.artifact.path)}")

    def results(self) -> pd.DataFrame:
        """The results table, which is written too."""
        self._table, self._provenance = write_results(self.plan, self.storage, self.context.failures)
        for warning in self._provenance["warnings"]:
            self.reporter.say(f"[yellow]warning[/]      {warning}")
        return self._table

    def record(self) -> None:
        """Bring MLflow up to what the storage holds.

        A store that is away is tried again for a minute. The results do not depend on it: what it lacks then
        is told, and recorded by the same command later.
        """
        experts = expert_curves(self.plan, self.storage, self.context.failures, self._table)
        found = trials(self.plan, self.storage), experts, cells(self.plan, self.storage)
        uri, name = self._tracking()[0], self.plan.experiment.name
        # Two drivers that record at once would both make the runs that they do not find.
        with self.storage.claim(Artifact.of("records", name, 1, {"experiment": name}), wait=True):
            recorded = self._patiently(lambda: self._tracker().record(self._table, *found))
        if recorded is not None:
            self.reporter.say(
                f"[bold]MLflow[/]       {recorded.runs} runs, {recorded.written} of them written to {uri}"
            )

    def _patiently(self, record: Callable[[], Recorded]) -> Recorded | None:
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

    def write_report(self, out: Path | None = None) -> None:
        """The HTML page, beside the results or as the file `out`."""
        name = self.plan.experiment.name
        page = render({name: self._table}, {name: self._provenance}).encode("utf-8", "replace")
        if out is not None:
            write_output(out, page)
            return
        self.storage.write(f"{name}/{Top.REPORT}", page)
        self.reporter.say(f"report       {self.storage.full(f'{name}/{Top.REPORT}')}")

    def status(self) -> int:
        """0, or 1 when something failed or is not recorded."""
        return 1 if self.context.failures or self._unrecorded else 0

    def _say_of_ray(self, text: str) -> None:
        self.reporter.say(f"[bold]{'Ray':<12}[/] {escape(text)}")

    def _tracking(self) -> tuple[str, str | None]:
        if self.options.tracking_uri is not None:
            return self.options.tracking_uri, None
        return local_uri(self.storage.root)

    def _tracker(self) -> Tracker:
        uri, artifacts = self._tracking()
        return Tracker(uri, self.plan.experiment.name, artifacts)
