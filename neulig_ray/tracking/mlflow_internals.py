"""What MLflow does not promise to keep and this package uses all the same: all of it is here, for upgrades.

tests/tracking/test_mlflow_internals.py fails where an installed MLflow has changed one of these.
"""

from typing import Final

PARENT: Final = "mlflow.parentRunId"  # without it runs are not shown below their experiment's run
KIND: Final = "mlflow.experimentKind"  # without it the page asks every reader what kind it is
NOTE: Final = "mlflow.note.content"  # without it the page shows no description
SOURCE: Final = "mlflow.source.name"  # without it the page does not say what wrote a run
TABLES: Final = "mlflow.loggedArtifacts"  # without it the page does not show tables as tables


def create_database(uri: str, artifacts: str) -> None:
    """Write the schema of a tracking store; without it a second driver may meet half a database."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore(uri, artifacts).engine.dispose()


def log_artifacts(folder: str, location: str, uri: str) -> None:
    """Write to a checked location; the public client would ask the server for the location again."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(location, tracking_uri=uri).log_artifacts(folder)
