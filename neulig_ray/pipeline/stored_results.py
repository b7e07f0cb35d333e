"""What an experiment's folder holds of its last results. Knows no stage: reading needs no torch."""

import io
from collections.abc import Mapping
from typing import Any

import pandas as pd

from neulig_ray.results import correctness
from neulig_ray.results.schema import frame
from neulig_ray.storage.layout import ABOUT, CORRECT, TABLE
from neulig_ray.storage.storage import Storage


def read_results(storage: Storage, name: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """An experiment's last results; raises FileNotFoundError when there are none."""
    table = pd.read_parquet(io.BytesIO(storage.read(f"{name}/{TABLE}")))
    return frame(table), storage.read_json(f"{name}/{ABOUT}")


def correct_file(name: str, fingerprint: str) -> str:
    """Where the bits of an evaluation's rows lie, in the folder of the experiment `name`."""
    return f"{name}/{CORRECT}/{fingerprint}.safetensors"


def read_correctness(storage: Storage, path: str) -> Mapping[str, correctness.Correctness]:
    """The rows of a file of bits. Raises FileNotFoundError, and InputError for a damaged one."""
    return correctness.read(storage.read(path, correctness.LARGEST + 1), storage.full(path))
