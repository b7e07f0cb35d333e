"""Who may talk to Ray: its token authentication, which driver and workers read from the environment.

Ray listens on every interface, so that without a token whoever reaches this machine runs code as its user.
"""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from neulig_ray.cluster import ray_internals
from neulig_ray.errors import InputError

_MODE: Final = "RAY_AUTH_MODE"
_TOKEN: Final = "RAY_AUTH_TOKEN"  # noqa: S105 - the name of a variable
_TOKEN_FILE: Final = "RAY_AUTH_TOKEN_PATH"  # noqa: S105 - as above
_HOME_FILE: Final = "~/.ray/auth_token"
SETTINGS: Final = (_MODE, _TOKEN, _TOKEN_FILE, "RAY_ENABLE_K8S_TOKEN_AUTH")


def local_settings() -> dict[str, str | None]:
    """The settings of a session of this machine alone: a token that nobody else has. None: not set."""
    return {**dict.fromkeys(SETTINGS), _MODE: "token", _TOKEN: secrets.token_hex(32)}


def overridden() -> str | None:
    """The inherited RAY_AUTH_MODE that a session of this machine alone does not follow, if any."""
    mode = os.environ.get(_MODE, "token")
    return None if mode.lower() == "token" else mode


@contextmanager
def variables(settings: Mapping[str, str | None]) -> Iterator[None]:
    """These variables of the environment (None: not set) until the end, then what there was before."""
    kept = {name: os.environ.get(name) for name in settings}
    try:
        _set(settings)
        yield
    finally:
        _set(kept)


@contextmanager
def environment(settings: Mapping[str, str | None]) -> Iterator[None]:
    """As `variables`, for all that Ray is told of authentication too; Ray reads them anew at both ends.

    Not for a process in which Ray runs already.
    """
    try:
        with variables({**{name: os.environ.get(name) for name in SETTINGS}, **settings}):
            _read_again()
            yield
    finally:
        _read_again()


def asks_for_token() -> bool:
    """Whether this process talks to Ray with a token; a session that answers it otherwise is open to all."""
    return ray_internals.authenticates()


def check_token_here(named: str) -> None:
    """Raise InputError where a cluster, `named` as in messages, is to be joined with a token that is missing.

    Ray itself would write a stack trace and abort the process.
    """
    if not asks_for_token() or _token_here():
        return
    if _TOKEN_FILE in os.environ:
        raise InputError(f"{named}: {_TOKEN_FILE} is {_file()!r}, where no token can be read. {_REMEDY}")
    raise InputError(f"{named}: {_MODE} is {os.environ.get(_MODE)!r}, and there is no token here. {_REMEDY}")


def refused(named: str) -> InputError:
    """The error for a cluster, `named` as in a message, that does not let this process in."""
    if asks_for_token():
        source = _TOKEN if os.environ.get(_TOKEN, "").strip() else _file()
        return InputError(f"{named}: the cluster has another token than the one here ({source}). {_REMEDY}")
    mode = os.environ.get(_MODE)
    told = f"{_MODE} is {mode!r}" if mode is not None else f"{_MODE} is not set"
    return InputError(f"{named}: the cluster asks for a token, and {told} here. Set {_MODE}=token. {_REMEDY}")


_REMEDY: Final = (
    f"The cluster's token belongs into {_HOME_FILE}, a file that {_TOKEN_FILE} names, or {_TOKEN}; "
    "`ray get-auth-token` on the head prints it."
)


def _file() -> str:
    return os.environ.get(_TOKEN_FILE, _HOME_FILE)


def _token_here() -> bool:
    """Whether Ray finds a token; looked for without Ray, which remembers what it once found."""
    if os.environ.get(_TOKEN, "").strip():
        return True
    try:
        return bool(Path(_file()).expanduser().read_bytes().strip())
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        return False


def _set(settings: Mapping[str, str | None]) -> None:
    for name, value in settings.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _read_again() -> None:
    """Have Ray read its mode and its token from the environment, as it did when it was imported.

    Threads of a session that has just ended may still ask for its token, and Ray aborts the process where its
    mode wants one and there is none: that one then stays in Ray's memory, and opens nothing.
    """
    ray_internals.read_auth_mode()
    if _token_here() or not asks_for_token():
        ray_internals.forget_token()
