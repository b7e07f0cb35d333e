"""What one node says of itself. This module travels to the nodes by value (see `cluster_doctor`).

A node with another neulig-ray, or with none, must be able to say so: nothing outside the standard library is
imported before it is asked for, and the answer is plain values.
"""

import importlib.metadata
import platform
import shutil
from collections.abc import Callable
from typing import Any

from neulig_ray.cluster import ray_internals
from neulig_ray.version import code_version

PACKAGES = ("ray", "torch", "torchvision", "open_clip_torch", "mlflow", "numpy", "pyarrow")


def examine(storage: str, mark: str, tracking_uri: str | None) -> dict[str, Any]:
    """Versions, GPUs that compute, the storage, MLflow, disk and memory (bytes free, in all) of this node.

    `mark` is a file that the driver wrote to the storage; `tracking_uri` None leaves MLflow out. What
    fails is told in words: `*_error`, empty if all is well.
    """
    found: dict[str, Any] = {"versions": versions(), "gpus": [], "marked": False}
    found["gpu_error"] = _error(lambda: found.update(gpus=_gpus()))
    found["storage_error"] = _error(lambda: found.update(marked=_storage(storage, mark)))
    found["tracking_error"] = _error(lambda: _tracking(tracking_uri)) if tracking_uri else ""
    found["disk"] = _disk()
    found["memory"] = _memory()
    return found


def versions() -> dict[str, str]:
    """Versions of what must be equal on all nodes; neulig-ray's with the start of its code's sha256."""
    found = {name: _version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "neulig-ray": code_version(), **found}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _gpus() -> list[str]:
    """Names of the GPUs on which torch computes a sum: seeing one is not yet being able to use it."""
    import torch

    for index in range(torch.cuda.device_count()):
        torch.ones(2, device=f"cuda:{index}").sum().item()
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _storage(uri: str, mark: str) -> bool:
    """Whether the driver's mark is there; raises what `check_writable` does."""
    from neulig_ray.storage.storage import Storage

    storage = Storage(uri)
    storage.check_writable()
    return storage.size(mark) is not None


def _tracking(uri: str) -> None:
    from neulig_ray.tracking.store import check

    check(uri)


def _disk() -> tuple[int, int]:
    """Bytes (free, total) where this node's Ray keeps its files."""
    usage = shutil.disk_usage(ray_internals.session_folder())
    return usage.free, usage.total


def _memory() -> tuple[int, int]:
    """Bytes (free, total) as Ray counts them, which knows a container's limits."""
    used, total = ray_internals.node_memory()
    return total - used, total


def _error(check: Callable[[], object]) -> str:
    try:
        check()
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        return text.splitlines()[0][:300]
    return ""
