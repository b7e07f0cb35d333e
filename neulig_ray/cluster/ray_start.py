"""Starting Ray on this machine alone: what it needs, looked at before, and why it did not start."""

import errno
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from neulig_ray.errors import InputError, StageError

_VARIABLES: Final = ("RAY_TMPDIR", "TMPDIR") if sys.platform == "linux" else ("RAY_TMPDIR",)
_SOCKET_NAME: Final = 107 if sys.platform == "linux" else 103  # bytes; the kernel's limit
_SHARED: Final = "/dev/shm"  # noqa: S108 - the kernel's, and Ray's choice
_ROOM: Final = 8 << 20  # bytes that a session writes soon after its start
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def check_machine() -> None:
    """Raise InputError where Ray could not start: it says so late, or says that the machine is busy."""
    folder, named, other = _folder()
    if not os.path.isabs(folder):
        raise InputError(
            f"{named}, which is no absolute path: Ray's processes would not find each other. {other}"
        )
    longest = os.path.join(
        folder, "ray", f"session_2000-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    )
    excess = len(os.fsencode(longest)) - _SOCKET_NAME
    if excess > 0:
        length = len(os.fsencode(folder))
        raise InputError(
            f"{named}, {length} bytes: Ray's sockets lie below it, and the name of a socket has at most "
            f"{_SOCKET_NAME} bytes, which leaves {length - excess} for this folder. {other}"
        )
    try:
        below = os.path.join(folder, "ray")
        os.makedirs(below, exist_ok=True)
        with tempfile.TemporaryFile(dir=below) as stream:
            stream.write(bytes(_ROOM))
    except OSError as error:
        room = f"Make room there. {other}" if error.errno in _FULL else other
        raise InputError(f"{named}, and Ray cannot write to {below!r}: {error.strerror}. {room}") from error
    if sys.platform == "linux" and not (os.path.isdir(_SHARED) and os.access(_SHARED, os.W_OK | os.X_OK)):
        raise InputError(
            f"{_SHARED}, the memory that Ray's workers share, is not there or cannot be written: mount a "
            "tmpfs there (Docker: --shm-size)"
        )


def start(options: dict[str, Any]) -> None:
    """ray.init of a session of this machine alone; raises StageError with what can be told of the reason."""
    import ray

    try:
        # Not one that somebody else started here, which a plain ray.init would join.
        ray.init(address="local", include_dashboard=False, **options)
    except Exception as error:  # a plain one, where the node does not come up within Ray's 30 s
        raise StageError(f"Ray did not start on this machine: {error}. {_remedy(error)}") from error


def _remedy(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    known = {
        errno.EMFILE: "This process may open no more files: raise `ulimit -n`",
        errno.ENFILE: "The machine has no more files to open: end what else runs here",
        errno.EAGAIN: "This user may start no more processes: raise `ulimit -u`, or end others",
        errno.ENOMEM: "The machine is short of memory: end what else runs here",
        **dict.fromkeys(_FULL, "Make room on that disk"),
    }
    if number in known:
        return known[number]
    text = str(error).lower()
    if "object store memory" in text or "memory on this node" in text:
        return "This machine, or its container, is short of memory: give it more, or end what else runs here"
    logs = f"Ray's own logs: {_logs()}"
    if "timed out" in text:
        return f"Where the machine is only busy, the same command goes on. {logs}"
    return logs


def _folder() -> tuple[str, str, str]:
    """Ray's folder of temporary files, by which setting it is named, and how to name another one."""
    for name in _VARIABLES:
        if name in os.environ:
            value = os.environ[name]
            return value, f"{name} is {value!r}", f"Set {name} to another folder, such as /tmp"
    return "/tmp", "Ray keeps its files in '/tmp'", "Set RAY_TMPDIR to another folder"  # noqa: S108 - Ray's own default


def _logs() -> str:
    """Where the last session that this process began keeps its logs."""
    root = Path(_folder()[0]) / "ray"
    found = sorted(root.glob(f"session_*_{os.getpid()}"))
    return str((found[-1] if found else root / "session_latest") / "logs")
