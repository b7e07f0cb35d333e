"""Where raw data and node-local copies lie, and whether the network may be asked for what is not there."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def cache_root() -> Path:
    """This node's own cache: $NEULIG_CACHE, else ~/.cache/neulig."""
    return Path(os.environ.get("NEULIG_CACHE") or "~/.cache/neulig").expanduser()


def data_root() -> Path:
    """Where data sets are downloaded to, or placed by hand: $NEULIG_DATA, else `data` in the cache."""
    given = os.environ.get("NEULIG_DATA")
    return Path(given).expanduser() if given else cache_root() / "data"


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
