"""The tracking store: where it is, whether it answers, and how a local one comes to be."""

import contextlib
import logging
import os
import ssl
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from neulig_ray.errors import InputError

_SQLITE: Final = "sqlite:///"
_ENVIRONMENT: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the default of 7 waits for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "GIT_PYTHON_REFRESH": "quiet",
}
_PROBE_SECONDS: Final = 4.0


def local_uri(storage: str | Path) -> tuple[str, str]:
    """The tracking URI and the artifact location inside a local storage folder, both absolute.

    Raises InputError for a path that a sqlite URI cannot name.
    """
    root = Path(storage).expanduser().resolve()
    if "?" in str(root):
        raise InputError(f"MLflow keeps no database under {str(root)!r}: rename the folder with the '?'")
    return f"{_SQLITE}{root}/mlflow.db", (root / "mlflow-artifacts").as_uri()


def database(uri: str) -> Path | None:
    """The file of a sqlite URI, None for any other."""
    return Path(uri.removeprefix(_SQLITE)).resolve() if uri.startswith(_SQLITE) else None


def check(uri: str) -> None:
    """Raise InputError, naming the URI and the remedy, when nothing could be recorded there.

    A local database is looked at without importing MLflow, a server is asked within seconds.
    """
    scheme = urlsplit(uri).scheme
    if scheme in ("", "file"):
        raise InputError(
            f"tracking URI {uri!r}: MLflow no longer records into folders. Use sqlite:////absolute/mlflow.db "
            "or the URI of a server, or leave --tracking-uri out for a database inside a local --storage."
        )
    if path := database(uri):
        _check_file(uri, path)
        return
    if scheme in ("http", "https"):
        _check_answer(uri)
    try:
        client(uri).search_experiments(max_results=1)
    except InputError:
        raise
    except Exception as error:  # whatever the store's own driver raises
        raise InputError(f"tracking URI {uri!r} cannot be used: {_first_line(error)}. {_REMEDY}") from error


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


_REMEDY: Final = (
    "Start the server (`mlflow server --host ... --port ... --allowed-hosts ...`), correct --tracking-uri, "
    "or leave it out for a database inside a local --storage."
)


def _create(path: Path) -> None:
    """Build the schema beside the final name and link it in: no kill and no second driver can spoil it."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        store = SqlAlchemyStore(f"{_SQLITE}{part}", (path.parent / "mlflow-artifacts").as_uri())
        store.engine.dispose()
        try:
            os.link(part, path)
        except FileExistsError:
            return
        except OSError:  # a file system without links
            os.replace(part, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()


def _check_file(uri: str, path: Path) -> None:
    folder = next(parent for parent in path.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"tracking URI {uri!r}: {str(folder)!r} cannot be written. Name another place.")
    if not path.exists():
        return
    with contextlib.suppress(OSError), path.open("r+b") as stream:
        if stream.read(16) in (b"SQLite format 3\x00", b""):
            return
    raise InputError(
        f"tracking URI {uri!r}: {str(path)!r} is no sqlite database that can be written. Move it away: what "
        "the storage holds is recorded again by the same command."
    )


def _check_answer(uri: str) -> None:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_PROBE_SECONDS):  # noqa: S310
            return
    except urllib.error.HTTPError as error:
        if error.code == 403 and "host" in error.read(500).decode(errors="replace").lower():
            raise InputError(
                f"the MLflow server at {uri!r} refuses its own name: start it with "
                f"--allowed-hosts {urlsplit(uri).netloc}"
            ) from error
        return  # it answers: MLflow's own client says whether it is a tracking server
    except OSError as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return  # the client knows the user's certificates
        raise InputError(f"no MLflow server answers at {uri!r}: {reason}. {_REMEDY}") from error
    except ValueError as error:
        raise InputError(f"tracking URI {uri!r}: {error}. {_REMEDY}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
