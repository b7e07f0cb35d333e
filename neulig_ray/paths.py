"""Where raw data and node-local copies lie: NEULIG_DATA and NEULIG_CACHE, or the user's cache folder."""

import os
from pathlib import Path


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
