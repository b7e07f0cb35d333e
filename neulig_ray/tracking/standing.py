"""Whether a local database has every run already, asked of its tables: importing MLflow takes seconds."""

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from neulig_ray.tracking.runs import CONTENT, KEY, Run

_RUNS = """
SELECT key.value, content.value, runs.status FROM experiments
JOIN runs ON runs.experiment_id = experiments.experiment_id AND runs.lifecycle_stage = 'active'
JOIN tags AS key ON key.run_uuid = runs.run_uuid AND key.key = ?
LEFT JOIN tags AS content ON content.run_uuid = runs.run_uuid AND content.key = ?
WHERE experiments.name = ? AND experiments.lifecycle_stage = 'active'
AND (? IS NULL OR experiments.artifact_location = ?)
"""


def all_stand(database: Path, experiment: str, location: str | None, wanted: Sequence[Run]) -> bool:
    """Whether the experiment's active runs are complete and as wanted, each key once.

    False also for a database that cannot be read in this way: then MLflow is asked.
    """
    if not wanted or not database.is_file():
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            found = connection.execute(_RUNS, (KEY, CONTENT, experiment, location, location)).fetchall()
    except sqlite3.Error:
        return False
    there = {key: rest for key, *rest in found}
    return len(there) == len(found) and all(there.get(run.key) == [run.content, run.status] for run in wanted)
