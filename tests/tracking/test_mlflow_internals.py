"""What MLflow does not promise is as this package uses it, in the MLflow that is installed."""

import inspect
from importlib.metadata import distribution
from pathlib import Path

from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils import mlflow_tags

from neulig_ray.tracking import mlflow_internals


def test_reserved_tags_are_spelled_as_mlflow_spells_them() -> None:
    known = {value for value in vars(mlflow_tags).values() if isinstance(value, str)}
    tags = {getattr(mlflow_internals, name) for name in ("PARENT", "NOTE", "SOURCE", "TABLES")}
    assert tags <= known


def test_experiments_have_a_kind() -> None:
    """Only the page knows this tag, and the demonstration that MLflow writes for it."""
    file = distribution("mlflow").locate_file("mlflow/demo/generators/traces.py")
    assert f'"{mlflow_internals.KIND}"' in Path(str(file)).read_text(encoding="utf-8")


def test_a_store_is_made_of_an_address_and_a_place_of_artifacts() -> None:
    assert list(inspect.signature(SqlAlchemyStore).parameters)[:2] == ["db_uri", "default_artifact_root"]


def test_a_folder_is_written_to_a_location(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from/rows.json").write_text("[]")
    mlflow_internals.log_artifacts(str(tmp_path / "from"), str(tmp_path / "to"), f"sqlite:///{tmp_path}/x.db")
    assert (tmp_path / "to/rows.json").read_text() == "[]"
