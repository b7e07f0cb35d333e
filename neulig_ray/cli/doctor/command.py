"""`neulig doctor`: what works here, on every node with --cluster, and what to do where it does not."""

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from neulig_ray.errors import InputError
from neulig_ray.redaction import redacted

Finding = tuple[bool, str]


def main(command: str, arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"neulig {command}", description=__doc__)
    parser.add_argument(
        "--storage", default="./neulig-storage", metavar="URI", help="./neulig-storage unless told otherwise"
    )
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow server; default: sqlite in a local storage"
    )
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="Ray head; default: a cluster of this machine alone"
    )
    parser.add_argument(
        "--cluster", nargs="?", const="", metavar="FILE",
        help="wait for the nodes of a cluster and examine each. FILE: the one that `ray up` was given, which "
        "names the nodes to expect; known without it on the head that `ray up` launched",
    )  # fmt: skip
    parser.add_argument(
        "--nodes", type=int, metavar="N", help="with --cluster: expect N nodes, the head included"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=300,
        metavar="S",
        help="with --cluster: wait S seconds for them (300)",
    )
    given = parser.parse_args(arguments)
    if given.cluster is not None:
        from neulig_ray.cli.doctor.cluster import check_cluster
        from neulig_ray.cli.doctor.nodes import expected

        return check_cluster(
            expected(given.cluster, given.nodes),
            address=given.address,
            storage_uri=given.storage,
            tracking_uri=given.tracking_uri,
            timeout=given.timeout,
        )
    if given.nodes is not None:
        parser.error("--nodes goes with --cluster")
    checks: dict[str, Callable[[], Finding]] = {
        "python": _python,
        "packages": _packages,
        "torch": _torch,
        "models": _models,
        "storage": lambda: _storage(given.storage),
        "MLflow": lambda: _mlflow(given.storage, given.tracking_uri),
        "Ray": lambda: _ray(given.address),
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    good = True
    for name, check in checks.items():
        try:
            fine, text = check()
        except Exception as error:
            fine, text = (
                False,
                f"{type(error).__name__}: {error}" if not isinstance(error, InputError) else str(error),
            )
        good &= fine
        table.add_row("[green]ok[/]" if fine else "[red]no[/]", f"[bold]{name}[/]", escape(redacted(text)))
    Console().print(table)
    return 0 if good else 1


def _python() -> Finding:
    fine = sys.version_info >= (3, 11)
    return fine, f"{platform.python_version()}" + ("" if fine else ": install Python 3.11 or newer")


def _packages() -> Finding:
    names = ("neulig-ray", "ray", "torch", "torchvision", "open_clip_torch", "mlflow", "numpy", "pandas")
    return True, ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def _torch() -> Finding:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return True, f"{os.cpu_count()} CPUs, " + (", ".join(gpus) if gpus else "no GPU: trainings run on CPUs")


def _models() -> Finding:
    from neulig_ray.models.archs import ARCHS
    from neulig_ray.models.origin_files import load_origin, shipped

    found = []
    for arch in ARCHS.values():
        for path in (shipped(arch.name, f"seed-{k}") for k in range(2)):
            if path is not None:
                load_origin(path, arch)
                found.append(path.stem)
    return bool(found), ", ".join(found) if found else "no shipped origin: install the package again"


def _storage(uri: str) -> Finding:
    from neulig_ray.storage.storage import Storage

    storage = Storage(uri)
    storage.check_writable()
    return True, f"{storage.shown} can be written"


def _mlflow(storage_uri: str, uri: str | None) -> Finding:
    from neulig_ray.storage.storage import Storage
    from neulig_ray.tracking.store import check, local_uri

    if uri is None:
        storage = Storage(storage_uri)
        if not storage.local:
            return False, f"the storage {storage_uri!r} is not local: give --tracking-uri http://HOST:PORT"
        uri = local_uri(storage.root)[0]
    check(uri)
    return True, uri + (" (a file: nothing listens)" if uri.startswith("sqlite:") else "")


def _ray(address: str | None) -> Finding:
    from neulig_ray.cli.doctor.doors import doors, told
    from neulig_ray.cluster.ray_auth import asks_for_token
    from neulig_ray.cluster.session import ClusterSession

    said: list[str] = []
    cluster = ClusterSession(address, (), say=said.append)
    try:
        cluster.start()
        closed = asks_for_token()
        lines = [cluster.describe(), *said]
        if cluster.alone:
            lines += ["while it runs there listen, at", told(doors(), token=closed)]
        return closed, "\n".join(lines)
    finally:
        cluster.stop()
