"""One rule says which methods have an ensemble equivalent, wherever it is shown."""

import importlib.util
from pathlib import Path

import pytest

from neulig_ray.api.listings import method_rows
from neulig_ray.experiment.config import Experiment
from neulig_ray.merging import METHODS
from neulig_ray.pipeline.capabilities import declared

SCRIPT = Path(__file__).parents[2] / "scripts/methods_table.py"
OWN = sorted(name for name in METHODS if METHODS.module(name).startswith("neulig_ray."))
HAVE = {"average", "fuse", "hard-routing", "ligand", "task-arithmetic", "weighted-average"}


@pytest.fixture(scope="module")
def readme() -> dict[str, str]:
    """Method -> its cell in the README's column."""
    specification = importlib.util.spec_from_file_location("table", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    table = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(table)
    lines = [line.split(" | ") for line in table.rendered("README.md").splitlines()]
    return {cells[0].strip("| `"): cells[3].strip() for cells in lines if cells[0].startswith("| `")}


@pytest.mark.parametrize("name", OWN)
def test_listing_table_and_capabilities_agree(name: str, readme: dict[str, str]) -> None:
    has = name in HAVE
    assert METHODS[name].has_ensemble_equivalent is has
    listed = {row["method"]: row["counterpart"] for row in method_rows()}
    assert listed[name] is has
    assert readme[name] == ("yes" if has else "")
    text = f"{name}:weights=1 2" if name == "weighted-average" else name
    about = declared(Experiment(name="x", archs=("tiny-vit",), methods=(text,)))["methods"]
    if METHODS[name].kind in ("reference", "ensemble"):
        assert name not in about
    else:
        assert about[name]["ensembling"] is has
