"""Where a run keeps its artifacts, makes them and records them, and what it says meanwhile."""

import os
from dataclasses import dataclass

from neulig_ray.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where to run and what to print."""

    storage: str = "./neulig-storage"
    """Local path, s3:// or gs://: what Ray's storage_path accepts."""
    address: str | None = None
    """Ray head as HOST:PORT, or `auto`; None: a cluster of this machine alone."""
    tracking_uri: str | None = None
    """MLflow server; None: a sqlite database inside a local storage."""
    quiet: bool = False
    """Print nothing but the table."""

    def check(self) -> None:
        """Raises InputError where MLflow's records have no place."""
        local = "://" not in self.storage or self.storage.startswith("file://")
        if not local and self.tracking_uri is None:
            unread = "; MLFLOW_TRACKING_URI is not read" if os.environ.get("MLFLOW_TRACKING_URI") else ""
            raise InputError(
                f"--storage {self.storage!r} is not local, so that MLflow's sqlite database cannot "
                f"lie in it: give --tracking-uri http://HOST:PORT (an MLflow server{unread})"
            )
