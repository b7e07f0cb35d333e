"""`neulig doctor --cluster`: did every node come, and can each do its part of a run?"""

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from neulig_ray import version as code
from neulig_ray.cli.doctor import probe
from neulig_ray.cli.doctor.nodes import Expected, Finding, judge, missing
from neulig_ray.cluster import ray_internals
from neulig_ray.errors import InputError, StageError
from neulig_ray.redaction import redacted

PROBE_SECONDS: Final = 180.0  # for a worker process to start and to import torch, on a busy machine


def check_cluster(
    want: Expected, *, address: str | None, storage_uri: str, tracking_uri: str | None, timeout: float
) -> int:
    """Wait for the nodes, examine each and print the table; 1 when anything is wrong, else 0."""
    from neulig_ray.cluster.ray_auth import asks_for_token
    from neulig_ray.cluster.session import ClusterSession

    console = Console()
    problems: list[str] = []
    notes: list[str] = []
    cluster = ClusterSession(address, (), default="auto", say=notes.append)
    try:
        cluster.start()
        if not asks_for_token():
            problems.append(notes.pop())
        alive = _wait(want, timeout)
        addresses = [node["NodeManagerAddress"] for node in alive]
        if absent := missing(want, addresses):
            problems.append(
                f"nodes: {absent} did not come within {timeout:g} s. Why their launch failed: "
                "`ray monitor FILE`, or monitor.* in /tmp/ray/session_latest/logs on the head. Autoscaled "
                "nodes come with the work, or with min_workers"
            )
        table, said, found = _examined(alive, storage_uri, tracking_uri)
        problems += found
    except InputError as error:
        console.print(f"[red]no[/]  {escape(str(error))}", highlight=False, soft_wrap=True)
        console.print(
            f"RAY_AUTH_MODE is {os.environ.get('RAY_AUTH_MODE', 'not set')} here: every node and client "
            "needs `token`, and the same token.",
            soft_wrap=True,
        )
        return 1
    finally:
        cluster.stop()
    versions = ", ".join(f"{name} {version}" for name, version in probe.versions().items())
    came = f"{len(alive)} of {want.count} nodes. Here: {versions}"
    for line in (*notes, came, f"storage {storage_uri}, {said}"):
        console.print(redacted(line), highlight=False, markup=False, soft_wrap=True)
    console.print(table, highlight=False)
    for problem in problems:
        console.print(f"[red]no[/]  {escape(redacted(problem))}", highlight=False, soft_wrap=True)
    return 1 if problems else 0


def _wait(want: Expected, timeout: float) -> list[dict[str, Any]]:
    """The nodes alive when all expected are, or after `timeout` seconds; says what it waits for."""
    import ray

    said, until = "", time.monotonic() + timeout
    while True:
        alive = sorted(
            (n for n in ray.nodes() if n["Alive"]), key=lambda node: str(node["NodeManagerAddress"])
        )
        absent = missing(want, [node["NodeManagerAddress"] for node in alive])
        if not absent or time.monotonic() > until:
            return alive
        if absent != said:
            Console(stderr=True).print(f"waiting for {absent}", highlight=False)
            said = absent
        time.sleep(1)


def _examined(
    nodes: Sequence[Mapping[str, Any]], storage_uri: str, tracking_uri: str | None
) -> tuple[Table, str, list[str]]:
    """The table of the nodes' checks, how MLflow is, and what is wrong in words."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from neulig_ray.tracking.store import check, local_uri

    for module in (probe, code):
        ray.cloudpickle.register_pickle_by_value(module)
    examine = ray.remote(probe.examine)
    problems: list[str] = []
    with _marked(storage_uri, problems) as (uri, mark, root):
        if tracking_uri is None and root is None:
            problems.append("MLflow: the storage is not local: give --tracking-uri http://HOST:PORT")
        tracking = tracking_uri or (local_uri(root)[0] if root else "")
        try:
            if tracking:
                check(tracking)
        except InputError as error:
            problems.append(f"MLflow: {error}")
        # Only the driver records. An address that means this machine alone is nobody else's to reach.
        asked = tracking if tracking and not _of_this_machine(tracking) else None
        tasks = {
            node["NodeID"]: examine.options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote(uri, mark, asked)
            for node in nodes
        }
        ray.wait(list(tasks.values()), num_returns=len(tasks), timeout=PROBE_SECONDS)
        answers = {name: _answer(task) for name, task in tasks.items()}
    columns = ["versions", "GPUs", "storage", *(["MLflow"] if asked else []), "disk", "memory"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("node", *columns):
        table.add_column(column)
    here = probe.versions()
    for node in nodes:
        resources = node["Resources"]
        label = node["NodeManagerAddress"] + (" (head)" if ray_internals.HEAD_RESOURCE in resources else "")
        answer = answers[node["NodeID"]]
        if isinstance(answer, str):
            table.add_row(label, "[red]no answer[/]")
            problems.append(f"{label}: {answer}")
            continue
        cells = judge(answer, here, resources.get("GPU", 0), asked_tracking=bool(asked))
        table.add_row(label, *(_shown(cells[column]) for column in columns))
        problems += [f"{label}, {name}: {cell.remedy}" for name, cell in cells.items() if cell.remedy]
    where = "on every node" if asked else "here, where the driver records"
    said = f"MLflow {tracking} is asked {where}" if tracking else "no MLflow"
    return table, said, problems


@contextlib.contextmanager
def _marked(uri: str, problems: list[str]) -> Iterator[tuple[str, str, str | None]]:
    """A storage's URI, the name of a file put there for the nodes to see, its folder where it is local."""
    from neulig_ray.storage.storage import Storage

    storage, folder = Storage(uri), f".doctor-{uuid.uuid4().hex}"
    mark = f"{folder}/mark"
    try:
        storage.write(mark, b"")
    except (InputError, StageError) as error:
        problems.append(f"storage: {error}. Name another folder or bucket, or mend its permissions")
    try:
        yield storage.uri, mark, storage.root if storage.local else None
    finally:
        with contextlib.suppress(OSError, StageError):
            storage.delete_tree(folder)


def _answer(task: Any) -> dict[str, Any] | str:
    """What a node said of itself, or why it did not."""
    import ray

    try:
        answer: dict[str, Any] = ray.get(task, timeout=0)
    except ray.exceptions.GetTimeoutError:
        return f"no answer within {PROBE_SECONDS:g} s: see raylet.out in its /tmp/ray/session_latest/logs"
    except Exception as error:  # whatever keeps a task from running there
        reason = str(error).strip().splitlines()
        return f"its task failed: {reason[-1] if reason else type(error).__name__}"
    return answer


def _shown(cell: Finding) -> str:
    return f"[red]{escape(cell.text)}[/]" if cell.remedy else escape(cell.text)


def _of_this_machine(uri: str) -> bool:
    return uri.startswith("sqlite:") or urlsplit(uri).hostname in ("localhost", "127.0.0.1", "::1")
