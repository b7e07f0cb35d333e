"""The one tracker, in the driver: brings an MLflow store up to date with what the stages wrote."""

import contextlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import pandas as pd

from neulig_ray.errors import InputError, StageError
from neulig_ray.redaction import redacted, without_secrets
from neulig_ray.tracking import mlflow_internals, projection, store
from neulig_ray.tracking.database import DatabaseLocked, database
from neulig_ray.tracking.records import CellRecord, ExpertCurve, TrialRecord
from neulig_ray.tracking.runs import CONTENT, KEY, Run
from neulig_ray.tracking.server import check_location, is_passing, is_server
from neulig_ray.tracking.standing import all_stand

_PAGE: Final = 1000  # runs asked for at once
_BATCH: Final = 1000  # metrics that MLflow takes at once


@dataclass(frozen=True)
class RecordCounts:
    """How many runs the experiment amounts to, and how many of them had to be written."""

    runs: int
    written: int


class Tracker:
    """Records an experiment at a tracking URI; `artifact_location` None leaves it to the server.

    Runs are found by the tag `neulig.key` and skipped when they have ended and the tag `neulig.content` says
    that nothing changed: recording again, or after an interruption, completes and never repeats.
    """

    def __init__(self, uri: str, experiment: str, artifact_location: str | None = None) -> None:
        self.uri = uri
        self.experiment = experiment
        self.artifact_location = artifact_location

    def check(self) -> None:
        """Raise InputError when nothing could be recorded; takes seconds at most.

        On a server the experiment is made, if need be: whether it may be, and where its artifacts go, shows
        then, before the work.
        """
        store.check(self.uri)
        if folder := self._local_folder():
            _check_folder(folder)
        if not is_server(self.uri):
            return
        try:
            client = store.client(self.uri)
            location = client.get_experiment(self._experiment_id(client)).artifact_location
        except InputError:
            raise
        except Exception as error:
            raise store.unusable(self.uri, error) from error
        check_location(location, self.uri)

    def _local_folder(self) -> Path | None:
        location = urlsplit(self.artifact_location or "")
        return Path(unquote(location.path)) if location.scheme == "file" else None

    def record(
        self,
        results: pd.DataFrame,
        trials: Sequence[TrialRecord] = (),
        experts: Sequence[ExpertCurve] = (),
        cells: Sequence[CellRecord] = (),
        artifacts: Mapping[str, bytes] | None = None,
    ) -> RecordCounts:
        """Create and update what is missing or changed. `artifacts` are laid beside every cell's own.

        Raises StageError when the store fails on the way: the same command again records the rest.
        """
        results = results.assign(status=results["status"].map(redacted))
        wanted = projection.runs(self.experiment, results, trials, experts, cells, artifacts)
        path = database(self.uri)
        if path and all_stand(path, self.experiment, self.artifact_location, wanted):
            return RecordCounts(len(wanted), 0)
        try:
            return self._bring_up_to_date(wanted)
        except (InputError, StageError):
            raise
        except Exception as error:  # MLflow, its HTTP client and its database raise their own
            if not is_server(self.uri):
                with contextlib.suppress(DatabaseLocked):
                    store.check(self.uri)  # what no waiting mends is told as such
            elif not is_passing(error):
                raise store.unusable(self.uri, error) from error
            raise StageError(
                f"MLflow at {self.uri!r} stopped recording {self.experiment!r}: "
                f"{store.first_line(error)}. Nothing is lost: the same command again records what is missing."
            ) from error

    def _bring_up_to_date(self, wanted: Sequence[Run]) -> RecordCounts:
        client = store.client(self.uri)
        experiment_id = self._experiment_id(client)
        known = _known(client, experiment_id)
        children: dict[str, list[Run]] = {}
        for run in wanted:
            children.setdefault(run.parent, []).append(run)
        written = 0
        for parent in children.get("", []):
            family = [run for run in (*children.get(parent.key, ()), parent) if not _stands(run, known)]
            if family:
                parent_id = _ensure(client, experiment_id, parent, known)
                for run in family:  # the parent last: a finished parent has all its children
                    _write(client, self.uri, experiment_id, run, known, parent_id)
            written += len(family)
        return RecordCounts(len(wanted), written)

    def _experiment_id(self, client: Any) -> str:
        found = client.get_experiment_by_name(self.experiment)
        if found and found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        if found and self.artifact_location not in (None, found.artifact_location):
            # The storage was moved or copied: the old runs point into another folder, not ours to fill.
            moved = f"{self.experiment} (moved, {found.experiment_id})"
            client.rename_experiment(found.experiment_id, moved)
            found = None
        if found:
            return str(found.experiment_id)
        location, path = self.artifact_location, database(self.uri)
        if path and not location:
            location = store.artifacts_beside(path)
        tags = {mlflow_internals.KIND: "custom_model_development"}  # else the page asks every reader
        try:
            return str(client.create_experiment(self.experiment, artifact_location=location, tags=tags))
        except Exception:  # of MLflow, perhaps because another driver has made it just now
            found = client.get_experiment_by_name(self.experiment)
            if found is None:
                raise
            return str(found.experiment_id)


def _known(client: Any, experiment_id: str) -> dict[str, Any]:
    """The experiment's runs by key. Of runs that two drivers made at once the first stays."""
    found: dict[str, Any] = {}
    token = None
    while True:
        page = client.search_runs(
            [experiment_id], filter_string=f"tags.`{KEY}` LIKE '%'", max_results=_PAGE,
            order_by=["attributes.start_time ASC", "attributes.run_id ASC"], page_token=token,
        )  # fmt: skip
        for run in page:
            key = run.data.tags[KEY]
            if key not in found:
                found[key] = run
            elif run.info.status != "RUNNING":
                client.delete_run(run.info.run_id)
        token = page.token
        if not token:
            return found


def _stands(run: Run, known: Mapping[str, Any]) -> bool:
    there = known.get(run.key)
    return bool(there and there.data.tags.get(CONTENT) == run.content and there.info.status == run.status)


def _ensure(client: Any, experiment_id: str, run: Run, known: dict[str, Any], parent_id: str = "") -> str:
    """The id of the run, made if need be: its key goes in with the creation, so it is found ever after."""
    if run.key not in known:
        start = int((time.time() - run.seconds) * 1000)
        tags = {**_tags(run), **({mlflow_internals.PARENT: parent_id} if parent_id else {})}
        made = client.create_run(experiment_id, start_time=start, tags=tags, run_name=run.name)
        known[run.key] = made
    return str(known[run.key].info.run_id)


def _write(
    client: Any, uri: str, experiment_id: str, run: Run, known: dict[str, Any], parent_id: str
) -> None:
    """Fill the run. Every call is a handful of commits in the database, so there are as few as can be."""
    from mlflow.entities import Metric, Param, RunTag

    run_id = _ensure(client, experiment_id, run, known, parent_id if run.parent else "")
    there = known[run.key].data.tags
    finished = known[run.key].info.status != "RUNNING"
    if finished:
        client.set_tag(run_id, CONTENT, "")  # from here on the run stands for neither state
    _write_files(client, uri, run_id, run)
    now = int(time.time() * 1000)
    # One time for all attempts at a first filling: points that are sent again are the same points.
    when = now if finished else known[run.key].info.start_time
    metrics = [Metric(name, value, when, step) for name, value, step in run.metrics]
    params = [Param(name, redacted(value)) for name, value in run.params.items()]
    tags = [RunTag(name, x) for name, x in _tags(run).items() if finished or there.get(name) != x]
    for start in range(_BATCH, len(metrics), _BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _BATCH])
    client.log_batch(run_id, metrics=metrics[:_BATCH], params=params, tags=tags)
    client.set_terminated(run_id, run.status, end_time=now)  # the status says that the run is complete


def _tags(run: Run) -> dict[str, str]:
    tables = [{"path": name, "type": "table"} for name in run.tables]  # what log_table leaves for the page
    own = {KEY: run.key, CONTENT: run.content, mlflow_internals.SOURCE: "neulig"}
    return {
        **without_secrets(run.tags),
        **own,
        **({mlflow_internals.TABLES: json.dumps(tables)} if tables else {}),
    }


def _write_files(client: Any, uri: str, run_id: str, run: Run) -> None:
    """All artifacts in one call. Tables as log_table writes them, which would append to an earlier one."""
    if not run.tables and not run.files:
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in run.tables.items():
            path = _place(folder, name)
            rows.to_json(path, orient="split", index=False)
        for name, data in run.files.items():
            _place(folder, name).write_bytes(data if isinstance(data, bytes) else data())
        if not is_server(uri):
            client.log_artifacts(run_id, folder)
            return

        # The client would ask the server again for the place, and take what it is told then.
        location = client.get_run(run_id).info.artifact_uri
        check_location(location, uri)
        mlflow_internals.log_artifacts(folder, location, uri)


def _check_folder(folder: Path) -> None:
    """Raises InputError where artifacts of MLflow cannot be written to a folder."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"MLflow's artifacts go into {str(folder)!r}, which is a file: move it away")


def _place(folder: str, name: str) -> Path:
    path = Path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
