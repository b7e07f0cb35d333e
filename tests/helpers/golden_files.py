"""Where the golden files lie: the selection that is kept with the tests, and the whole collection, if any."""

import os
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
KEPT = TESTS / "golden" / "merging.tar.xz"
VARIABLE = "NEULIG_GOLDEN"
NO_FILE = "no_golden_file"  # the mark of a parameter without a file: conftest leaves its test out


def collection() -> Path | None:
    """The folder that NEULIG_GOLDEN names, None where it names nothing.

    Raises pytest.UsageError for one that is not there or holds no golden file.
    """
    if not (named := os.environ.get(VARIABLE)):
        return None
    folder = Path(named)
    if not folder.is_dir():
        raise pytest.UsageError(f"{VARIABLE} names {named!r}, which is no folder. {_REMEDY}")
    if next(folder.glob("*.safetensors"), None) is None:
        raise pytest.UsageError(f"{VARIABLE} names {named!r}, which holds no *.safetensors. {_REMEDY}")
    return folder


_REMEDY = (
    f"Name the folder of the golden files, or unset it: {KEPT.relative_to(TESTS.parent)} is always read."
)
