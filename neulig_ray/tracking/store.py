"""The tracking store: where it is, whether it answers, and how a local one comes to be."""

import contextlib
import logging
import os
import re
import uuid
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from neulig_ray.errors import InputError
from neulig_ray.redaction import redacted
from neulig_ray.storage.layout import Top
from neulig_ray.tracking import mlflow_internals
from neulig_ray.tracking.database import check_database, database
from neulig_ray.tracking.server import REMEDY, check_server, credentials, is_server

_SQLITE: Final = "sqlite:///"
_ENVIRONMENT: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the default of 7 waits for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "GIT_PYTHON_REFRESH": "quiet",
}
_ADDRESS: Final = re.compile(r"[A-Za-z0-9.-]+:\d+/?")


def local_uri(storage: str | Path) -> tuple[str, str]:
    """The tracking URI and the artifact location inside a local storage folder, both absolute.

    Raises InputError for a path that a sqlite URI cannot name.
    """
    root = Path(storage).expanduser().resolve()
    if "?" in str(root):
        raise InputError(f"MLflow keeps no database under {str(root)!r}: rename the folder with the '?'")
    return f"{_SQLITE}{root}/{Top.DATABASE}", artifacts_beside(root / Top.DATABASE)


def artifacts_beside(path: Path) -> str:
    """The artifact location that goes with a database of ours: MLflow's own choice depends on the folder."""
    return (path.parent / Top.MLFLOW_ARTIFACTS).as_uri()


def check(uri: str) -> None:
    """Raise InputError, naming the URI and the remedy, when nothing could be recorded there.

    A local database is looked at without importing MLflow, a server is asked within seconds.
    """
    _check_form(uri)
    if path := database(uri):
        check_database(path)
        return
    if is_server(uri):
        check_server(uri)
    try:
        client(uri).search_experiments(max_results=1)
    except InputError:
        raise
    except Exception as error:  # whatever the store's own driver raises
        raise unusable(uri, error) from error


def _check_form(uri: str) -> None:
    """Raises InputError for what MLflow would take for another kind of store than was meant."""
    if _ADDRESS.fullmatch(uri):
        raise InputError(f"tracking URI {uri!r} has no scheme. A server is http://{uri}")
    if uri.startswith("sqlite:") and (database(uri) is None or ":memory:" in uri):
        raise InputError(
            f"tracking URI {uri!r} names no file: what is recorded would be gone with the process. "
            "Use sqlite:////absolute/mlflow.db."
        )
    if urlsplit(uri).scheme in ("", "file") and uri != "databricks":
        raise InputError(
            f"tracking URI {uri!r}: MLflow no longer records into folders. Use "
            "sqlite:////absolute/mlflow.db or the URI of a server, or leave --tracking-uri out for a "
            "database inside a local --storage."
        )


def unusable(uri: str, error: Exception) -> InputError:
    """What a store that answered with `error` cannot be used for, and the remedy."""
    reason = first_line(error)
    variable = re.search(r"\bMLFLOW_[A-Z_]+\b", reason)
    if isinstance(error, ImportError):
        drivers = {"psycopg2": "psycopg2-binary", "psycopg": "psycopg[binary]", "MySQLdb": "mysqlclient"}
        remedy = f"Install the driver: pip install '{drivers.get(error.name or '', error.name)}'"
    elif user := credentials(error):
        remedy = user
    elif variable:
        remedy = f"Correct or unset {variable[0]}, which is set in the environment."
    else:
        remedy = REMEDY
    return InputError(f"tracking URI {uri!r} cannot be used: {reason}. {remedy}")


def first_line(error: Exception) -> str:
    """What an error says first, without secrets."""
    return redacted((str(error).strip() or type(error).__name__).splitlines()[0])[:300]


def client(uri: str) -> Any:
    """A quiet MlflowClient; a sqlite database that is not there yet is made, whole or not at all."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    path = database(uri)
    if path and not path.exists():
        _create(path)
    return mlflow.MlflowClient(tracking_uri=uri)


def _create(path: Path) -> None:
    """Build the schema beside the final name and link it in: no kill and no second driver can spoil it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        mlflow_internals.create_database(f"{_SQLITE}{part}", artifacts_beside(path))
        try:
            os.link(part, path)
        except FileExistsError:
            return
        except OSError:  # a file system without links
            os.replace(part, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
