"""Files that commands write where a user names one: the place is tried before the work, the file is whole."""

import contextlib
import os
import uuid
from pathlib import Path

from neulig_ray.errors import InputError, StageError


def check_output(given: str | Path, *, parents: bool = False) -> Path:
    """The file that --out names, links followed; raises InputError where none can be, before the work for it.

    A file is made in its folder and removed again: permissions alone do not tell of read-only file systems.
    `parents`: folders that are missing are made when it is written.
    """
    try:
        target = Path(os.path.realpath(Path(given).expanduser()))
        if not str(given) or target.is_dir():
            raise InputError(f"--out {str(given)!r} is a folder: name a file in it")
        if target.exists() and not target.is_file():
            raise InputError(f"--out {str(given)!r} is a device or a pipe, not a file")
        folder = target.parent
        while parents and not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise InputError(f"--out {str(given)!r}: there is no folder {str(folder)!r}; make it first")
        part = _part(folder / target.name)
        try:
            part.touch()
        finally:
            part.unlink(missing_ok=True)
    except (OSError, ValueError, RuntimeError) as error:  # too long a name, a null byte, the home of nobody
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"--out {str(given)[-80:]!r} cannot be written: {getattr(error, 'strerror', None) or error}"
        ) from error
    return target


def write_output(target: Path, data: bytes) -> None:
    """Write a file whole or not at all, over an earlier one; raises StageError, and then that one stays."""
    part = _part(target)
    try:
        part.write_bytes(data)
        os.replace(part, target)
    except OSError as error:
        raise StageError(f"{str(target)!r} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _part(target: Path) -> Path:
    return target.with_name(f".{uuid.uuid4().hex}.part")
