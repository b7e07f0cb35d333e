"""A tracking server: whether it answers, as what, and where it would have artifacts written."""

import base64
import http.client
import os
import re
import ssl
import urllib.error
import urllib.request
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

from neulig_ray.errors import InputError

PROBE_SECONDS: Final = 4.0
REMEDY: Final = (
    "Start the server (`mlflow server --host ... --port ... --allowed-hosts ...`), correct --tracking-uri, "
    "or leave it out for a database inside a local --storage."
)
_OLDEST: Final = 2  # the first MLflow whose servers know all that is asked of them
_NOT_REMOTE: Final = {
    "",
    "file",
    "runs",
    "models",
}  # the last two name other locations of the server's choice


def is_server(uri: str) -> bool:
    return urlsplit(uri).scheme in ("http", "https")


def check_server(uri: str) -> None:
    """Raises InputError for an address where no server answers, and one that is no MLflow or too old."""
    try:
        parts = urlsplit(uri)
        host = parts.hostname
        address = parts.netloc.rpartition("@")[2]
        _ = parts.port
    except ValueError as error:
        raise InputError(f"tracking URI {uri!r}: {error}. {REMEDY}") from error
    if not host:
        raise InputError(f"tracking URI {uri!r} names no host. {REMEDY}")
    try:
        with urllib.request.urlopen(_request(parts, "health"), timeout=PROBE_SECONDS):  # noqa: S310
            pass
    except urllib.error.HTTPError as error:
        if error.code == 403 and "host" in error.read(500).decode(errors="replace").lower():
            raise InputError(
                f"the MLflow server at {uri!r} refuses its own name: start it with --allowed-hosts {address}"
            ) from error
        return  # it answers: MLflow's own client says whether it is a tracking server
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return  # the client knows the user's certificates
        raise InputError(f"no MLflow server answers at {uri!r}: {reason}. {REMEDY}") from error
    except ValueError as error:
        raise InputError(f"tracking URI {uri!r}: {error}. {REMEDY}") from error
    _check_version(uri, parts)


def _check_version(uri: str, parts: SplitResult) -> None:
    """MLflow tells its version since long; what tells none is left to MLflow's client."""
    try:
        with urllib.request.urlopen(_request(parts, "version"), timeout=PROBE_SECONDS) as answer:  # noqa: S310
            told = answer.read(100).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException):
        return
    if (number := re.match(r"(\d+)\.\d+", told)) and int(number[1]) < _OLDEST:
        raise InputError(
            f"the MLflow server at {uri!r} is version {told}, too old to be recorded into: "
            f"upgrade it to {_OLDEST}.0 or newer."
        )


def _request(parts: SplitResult, page: str) -> urllib.request.Request:
    """A question to the server. User and password go into a header: urllib takes none in an address."""
    user, _, address = parts.netloc.rpartition("@")
    place = parts._replace(netloc=address, path=f"{parts.path.rstrip('/')}/{page}", query="", fragment="")
    request = urllib.request.Request(place.geturl())  # noqa: S310 - http or https
    if user:
        request.add_unredirected_header(
            "Authorization", f"Basic {base64.b64encode(unquote(user).encode()).decode()}"
        )
    return request


def check_location(location: str, uri: str) -> None:
    """Raises InputError where a server would have this machine's own files written.

    MLflow's client follows whatever location a server names, so that any server could have files written,
    and read, wherever the user may.
    """
    scheme = urlsplit(location.strip()).scheme
    if scheme in _NOT_REMOTE or len(scheme) == 1:  # a drive of Windows
        raise InputError(
            f"the MLflow server at {uri!r} keeps this experiment's artifacts at "
            f"{location!r}, which is a place on each client's own disk. Start it with "
            "--serve-artifacts and --artifacts-destination FOLDER, so that new experiments' are at "
            "mlflow-artifacts:, and use another --name, or delete the experiment for good (`mlflow gc`)."
        )


def is_passing(error: Exception) -> bool:
    """Whether what a store answered may be otherwise later: its errors are, what it refuses is not."""
    status: Any = getattr(error, "get_http_status_code", lambda: 500)()
    return bool(status >= 500 or status in (408, 425, 429, 499))


def credentials(error: Exception) -> str:
    """What to do about a refused user, naming the variables that MLflow reads him from; else nothing."""
    status: Any = getattr(error, "get_http_status_code", lambda: 500)()
    named = {name for name in _CREDENTIALS if os.environ.get(name)}
    if status not in (401, 403) and "401" not in str(error) and "403" not in str(error):
        return ""
    if named:
        return f"Correct {' and '.join(sorted(named))}, from which MLflow takes the user."
    return "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."


_CREDENTIALS: Final = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
