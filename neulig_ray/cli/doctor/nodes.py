"""Which nodes a cluster should have, and whether one can do its part of a run."""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from neulig_ray.cli.units import size
from neulig_ray.cluster.ray_internals import BOOTSTRAP_CONFIG
from neulig_ray.errors import InputError

FULL: Final = (
    0.95  # Ray kills workers above this share of the memory, and stops spilling above it on the disk
)


@dataclass(frozen=True)
class Expected:
    """How many nodes should come, and at which addresses where the cluster's file names them."""

    count: int
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """One check of one node: what the table shows and, where it failed, what to do."""

    text: str
    remedy: str = ""


def expected(file: str | None, count: int | None) -> Expected:
    """The nodes of a cluster file: all of a `type: local`, else the head and every type's min_workers.

    Without `file`, the one that `ray up` left on the head, if there is one. `count` overrides how many.
    Raises InputError for a file that is none.
    """
    import yaml

    path = Path(file or BOOTSTRAP_CONFIG).expanduser()
    if not file and not path.exists():
        return Expected(count or 1)
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        provider, types = config["provider"], config.get("available_node_types") or {}
        local = provider["type"] == "local"
        named = (provider["head_ip"], *provider["worker_ips"]) if local else ()
    except (OSError, yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            f"--cluster {str(path)!r} is no cluster file of Ray ({reason}). Give the file that `ray up` was "
            "given, or leave it out and say --nodes N."
        ) from error
    least = len(named) or 1 + sum(kind.get("min_workers", 0) for kind in types.values())
    return Expected(count or least, tuple(map(_address, named)))


def missing(want: Expected, alive: Sequence[str]) -> str:
    """Which nodes did not come, in words; empty when all did."""
    if len(alive) >= want.count:
        return ""
    absent = [address for address in want.addresses if address not in alive]
    return ", ".join(absent) or f"{want.count - len(alive)} of {want.count}"


def judge(
    found: Mapping[str, Any], here: Mapping[str, str], gpus: float, *, asked_tracking: bool
) -> dict[str, Finding]:
    """Column -> cell for one node's answer. `here`: the driver's versions; `gpus`: what Ray counts there."""
    differing = {name: there for name, there in found["versions"].items() if there != here.get(name)}
    cells = {"versions": Finding("same")}
    if differing:
        cells["versions"] = Finding(
            ", ".join(f"{name} {there}" for name, there in differing.items()),
            f"the driver has {', '.join(f'{name} {here.get(name)}' for name in differing)}: `ray up` with "
            "this checkout's cluster file installs the same everywhere",
        )
    cells["GPUs"] = _gpus(found, gpus)
    if found["storage_error"]:
        cells["storage"] = Finding("no", found["storage_error"])
    elif not found["marked"]:
        cells["storage"] = Finding(
            "another",
            "what the driver writes is not seen there: mount one shared folder on every node at the same "
            "path, or give --storage s3://BUCKET/PREFIX",
        )
    else:
        cells["storage"] = Finding("shared")
    if asked_tracking:
        error = found["tracking_error"]
        cells["MLflow"] = Finding("no" if error else "answers", error)
    for name, remedy in (
        ("disk", "make room where Ray keeps its files (/tmp/ray unless told otherwise): it stops spilling"),
        ("memory", "end what else runs there: Ray kills the workers of a full node"),
    ):
        free, total = found[name]
        text = f"{size(free)} free"
        cells[name] = Finding(text, remedy if total - free > FULL * total else "")
    return cells


def _gpus(found: Mapping[str, Any], counted: float) -> Finding:
    seen = len(found["gpus"])
    text = ", ".join(sorted(set(found["gpus"]))) or "none"
    text = f"{seen} x {text}" if seen > 1 else text
    if found["gpu_error"]:
        return Finding("unusable", f"torch: {found['gpu_error']}. NVIDIA's driver and torch's CUDA must fit")
    if seen != counted:
        return Finding(
            f"{seen}, Ray counts {counted:g}",
            "torch sees other GPUs than Ray hands out: install a torch for this CUDA, or correct --num-gpus "
            "of `ray start` (resources in the cluster file)",
        )
    return Finding(text)


def _address(name: str) -> str:
    """The IP of a host name, as Ray shows it; the name itself where nobody knows it."""
    try:
        return socket.gethostbyname(name)
    except OSError:
        return name
