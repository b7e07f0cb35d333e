"""What drivers are at work on: their artifacts are of no results yet, and are not to be pruned."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from neulig_ray.cluster.jobs import is_done
from neulig_ray.errors import InputError, StageError
from neulig_ray.pipeline.plan import Plan
from neulig_ray.pipeline.stages import STAGES
from neulig_ray.storage.scratch import ROOT, folders, gone, scratch
from neulig_ray.storage.storage import Storage

_PLAN = "plan.json"


@contextmanager
def announced(plan: Plan, storage: Storage) -> Iterator[None]:
    """Keep a run's artifacts named in the storage while it goes on, where any of them are missing."""
    artifacts = [artifact for found in plan.artifacts().values() for artifact in found]
    if all(is_done(storage, job) for stage in STAGES for job in stage.jobs(plan)):
        yield
        return
    with scratch(storage, f"runs/{plan.experiment.name}") as own:
        names = sorted(artifact.fingerprint for artifact in artifacts)
        storage.write(f"{own.path}/{_PLAN}", json.dumps({"artifacts": names}).encode())
        own.sweep(lambda folder: storage.local)
        yield


def in_use(storage: Storage) -> set[str]:
    """The fingerprints of all artifacts that drivers work with now; StageError where one tells none."""
    found: set[str] = set()
    for folder in folders(storage, f"{ROOT}/runs"):
        if not gone(storage, folder):
            try:
                found.update(storage.read_json(f"{folder}/{_PLAN}")["artifacts"])
            except (FileNotFoundError, InputError, LookupError, TypeError) as error:
                raise StageError(
                    f"a run goes on in {storage.full(folder)}; {_PLAN} does not tell its artifacts: {error}"
                ) from error
    return found
