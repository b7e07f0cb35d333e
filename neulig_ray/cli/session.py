"""One command's run over one storage: checks first, then stages, then what people look at."""

from pathlib import Path
from types import TracebackType

import pandas as pd
from rich.console import Console
from rich.table import Table

from neulig_ray.cli.options import Options
from neulig_ray.cli.records import cells, expert_curves, trials
from neulig_ray.config import Experiment
from neulig_ray.plugins import load_plugins, read_plugins
from neulig_ray.report.html import render
from neulig_ray.stages.cluster import Cluster
from neulig_ray.stages.pipeline import LAST_STAGE, Pipeline
from neulig_ray.stages.plan import make_plan
from neulig_ray.stages.progress import Reporter
from neulig_ray.stages.results import write_results
from neulig_ray.stages.storage import Storage
from neulig_ray.tracking.mlflow import Tracker
from neulig_ray.tracking.store import local_uri

REPORT = "report.html"


class Session:
    """Everything of one run. Entering it checks the input; nothing has been started when it refuses."""

    def __init__(self, experiment: Experiment, options: Options) -> None:
        plugins = read_plugins(experiment.plugins)
        load_plugins(plugins)
        self.options = options
        self.plan = make_plan(experiment)
        self.storage = Storage(options.storage)
        # Progress goes to standard error: standard output is the table's, or the JSON's.
        self.reporter = Reporter(Console(stderr=True), quiet=options.quiet)
        self.cluster = Cluster(options.address, plugins, autoscaling=experiment.cluster.autoscaling)
        self.pipeline = Pipeline(self.plan, self.storage, self.cluster, self.reporter)

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cluster.stop()

    def print_plan(self) -> None:
        """What a run would do: stages, jobs, what the storage has of them."""
        table = Table(box=None, pad_edge=False, header_style="bold", title=self.plan.experiment.name)
        for column in ("stage", "artifacts", "in the storage", "to do"):
            table.add_column(column, justify="left" if column == "stage" else "right")
        for stage, found in self.plan.artifacts().items():
            have = sum(self.storage.exists(artifact) for artifact in found)
            table.add_row(stage, str(len(found)), str(have), str(len(found) - have))
        console = Console()
        console.print(table)
        for group in self.plan.groups:
            console.print(f"{group.arch} {group.origin} n={group.n}: {len(group.combinations)} combinations")
        console.print(f"storage {self.storage.uri}, MLflow {self._tracking()[0]}", soft_wrap=True)

    def run(self, command: str) -> None:
        """Run the pipeline up to what `command` ends with."""
        self.storage.check_writable()
        if command == "run":
            self._tracker().check()
        self.pipeline.run(LAST_STAGE[command])
        if command == "pretrain":
            for origin in self.plan.origins:
                self.reporter.say(f"{origin.label}: {self.storage.full(origin.artifact.path)}")

    def results(self) -> pd.DataFrame:
        """The results table, which is written too."""
        self._table, self._provenance = write_results(self.plan, self.storage, self.pipeline.failures)
        return self._table

    def record(self) -> None:
        """Bring MLflow up to what the storage holds."""
        recorded = self._tracker().record(
            self._table,
            trials=trials(self.plan, self.storage),
            experts=expert_curves(self.plan, self.storage, self.pipeline.failures, self._table),
            cells=cells(self.plan, self.storage),
        )
        uri = self._tracking()[0]
        self.reporter.say(
            f"[bold]MLflow[/]       {recorded.runs} runs, {recorded.written} of them written to {uri}"
        )

    def write_report(self, out: Path | None = None) -> None:
        """The HTML page, beside the results or as the file `out`."""
        name = self.plan.experiment.name
        page = render({name: self._table}, {name: self._provenance})
        if out is not None:
            out.write_text(page)
            return
        self.storage.write(f"{name}/{REPORT}", page.encode())
        self.reporter.say(f"report       {self.storage.full(f'{name}/{REPORT}')}")

    def status(self) -> int:
        """0, or 1 when something failed."""
        return 1 if self.pipeline.failures else 0

    def _tracking(self) -> tuple[str, str | None]:
        if self.options.tracking_uri is not None:
            return self.options.tracking_uri, None
        return local_uri(self.storage.root)

    def _tracker(self) -> Tracker:
        uri, artifacts = self._tracking()
        return Tracker(uri, self.plan.experiment.name, artifacts)
