"""Jobs on Ray: those that take a GPU go to workers that keep it, and none is lost with its worker.

The suite's Ray session has no GPU: its CPUs stand for them.
"""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import call_jobs
import pytest
from call_jobs import CallJob

from neulig_ray.cluster import jobs
from neulig_ray.cluster.jobs import Needs, Resources
from neulig_ray.storage.artifact import Artifact
from neulig_ray.storage.storage import Storage

ONE_GPU = Resources(cpus=1, gpus=0.5)


def job(label: str, make: Any, **needs: bool) -> CallJob:
    return CallJob(Artifact.of("evaluation", label, 1, {"label": label}), make, Needs(**needs))


def test_jobs_that_look_at_stored_numbers_alone_ask_for_no_gpu() -> None:
    def nothing(storage: Storage) -> Any:
        return {}, {}

    assert jobs._keeps(job("merge", nothing), ONE_GPU)
    assert not jobs._keeps(job("ensemble", nothing, gpu=False), ONE_GPU)
    assert not jobs._keeps(job("data", nothing, on_driver=True), ONE_GPU)
    assert not jobs._keeps(job("merge", nothing), Resources(cpus=1))


@pytest.mark.ray
def test_workers_go_from_job_to_job_and_a_killed_one_loses_none(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_keeps", lambda job, resources: job.needs.gpu)
    import ray

    ray.cloudpickle.register_pickle_by_value(call_jobs)  # workers do not find the tests' helpers
    killed_once = str(tmp_path / "killed")

    def plain(storage: Storage) -> Any:
        return {}, {"pid": os.getpid()}

    def dies_once(storage: Storage) -> Any:
        if not os.path.exists(killed_once):
            Path(killed_once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {}, {"pid": os.getpid()}

    def always_dies(storage: Storage) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def raises(storage: Storage) -> Any:
        raise ValueError("the experts differ")

    made = {
        **{f"plain {i}": job(f"plain {i}", plain) for i in range(6)},
        "dies once": job("dies once", dies_once),
        "always dies": job("always dies", always_dies),
        "raises": job("raises", raises),
        "on a CPU": job("on a CPU", plain, gpu=False),
        **{f"last {i}": job(f"last {i}", plain) for i in range(3)},
    }
    storage, told = Storage(str(tmp_path / "storage")), dict[str, str]()
    stage: Any = SimpleNamespace(slots=2, finished=lambda label, text, *, failed: told.update({label: text}))
    failures = jobs._run(list(made.values()), storage, Resources(cpus=1, max_failures=1), stage)

    assert told.keys() == made.keys()
    broken = {made[label].artifact.fingerprint: told[label] for label in ("always dies", "raises")}
    assert failures == broken
    assert told["raises"] == "ValueError: the experts differ"
    assert told["always dies"].endswith("(tried 2 times)")
    pids = [
        storage.manifest(one.artifact)["info"]["pid"]
        for one in made.values()
        if one.artifact.fingerprint not in failures and one.needs.gpu
    ]
    assert len(pids) == 10
    assert len(set(pids)) <= 2 + 3, "two workers, and one more for each time that one was killed"
