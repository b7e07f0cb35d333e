"""Where raw data and node-local copies lie, and whether the network may be asked for what is not there."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neulig_ray.errors import InputError


def cache_root() -> Path:
    """This node's own cache: $NEULIG_CACHE, else ~/.cache/neulig."""
    return Path(os.environ.get("NEULIG_CACHE") or "~/.cache/neulig").expanduser()


def data_root() -> Path:
    """Where data sets are downloaded to, or placed by hand: $NEULIG_DATA, else `data` in the cache."""
    given = os.environ.get("NEULIG_DATA")
    return Path(given).expanduser() if given else cache_root() / "data"


def check_roots(*, cache: bool) -> None:
    """Raise InputError, by the variable, for a root that is no folder; `cache`: this node's is written to."""
    for name, find in (("NEULIG_CACHE", cache_root), ("NEULIG_DATA", data_root)):
        given, written = os.environ.get(name), cache and find is cache_root
        if not (given or written):
            continue
        told = f"{name} is {given!r}" if given else f"{name} is not set"
        try:
            path = find().absolute()
        except RuntimeError as error:  # a user, or a home folder, that nobody knows
            raise InputError(f"{told}: {error}. Set it to a folder") from error
        there = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
        if not there.is_dir():
            raise InputError(f"{told}, and {str(there)!r} is no folder. Set it to another one")
        if written and not os.access(there, os.W_OK | os.X_OK):
            raise InputError(
                f"{told}, and {str(there)!r} cannot be written, where this node keeps copies of what the "
                "storage has. Set it to another folder"
            )


def offline() -> bool:
    """Whether HF_HUB_OFFLINE or HF_DATASETS_OFFLINE forbids the network: to torchvision's downloads too."""
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    return any(os.environ.get(name, "").lower() in {"1", "on", "yes", "true"} for name in names)


@contextlib.contextmanager
def kept_offline() -> Iterator[None]:
    """The hub's libraries ask no network meanwhile; afterwards they may again, if they could before."""
    from huggingface_hub import constants

    variable, hub = os.environ.get("HF_HUB_OFFLINE"), constants.HF_HUB_OFFLINE
    data = _of_datasets()
    os.environ["HF_HUB_OFFLINE"] = "1"  # for what is imported meanwhile
    constants.HF_HUB_OFFLINE = True  # these two keep the variable as they found it at their import
    if data is not None:
        before, data.HF_HUB_OFFLINE = data.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        del os.environ["HF_HUB_OFFLINE"]
        if variable is not None:
            os.environ["HF_HUB_OFFLINE"] = variable
        constants.HF_HUB_OFFLINE = hub
        if data is not None:
            data.HF_HUB_OFFLINE = before
        elif (data := _of_datasets()) is not None:
            data.HF_HUB_OFFLINE = hub or offline()


def _of_datasets() -> Any:
    return sys.modules.get("datasets.config")
