"""Whether MLflow can record into a sqlite database: told in milliseconds, without importing MLflow."""

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

from neulig_ray.errors import InputError

_SQLITE: Final = re.compile(r"sqlite(\+pysqlite)?:///")
_PATIENCE: Final = 5.0  # seconds that a lock of another process may last
_QUICK: Final = 64 * 2**20  # bytes that sqlite examines in less than a second
_TABLES: Final = {"experiments", "runs", "metrics", "params", "tags"}  # of every MLflow
_REVISION: Final = re.compile(r"""^(down_)?revision\s*(?::[^=]*)?=\s*["'](\w+)["']""", re.MULTILINE)
_AWAY: Final = "Move it away: what the storage holds is recorded again by the same command."


class DatabaseLocked(InputError):
    """Another process holds the database: it may be free later."""


def database(uri: str) -> Path | None:
    """The file of a sqlite URI, None for any other."""
    start = _SQLITE.match(uri)
    return Path(uri[start.end() :].partition("?")[0]).resolve() if start else None


def check_database(path: Path) -> None:
    """Raises InputError, naming the file and the remedy, where MLflow could not record into it."""
    if os.path.isdir(path):  # like the others of os.path, it raises nothing
        raise InputError(
            f"MLflow's database {str(path)!r} is a folder. Name a file, or move the folder away."
        )
    _check_folder(path)
    if not os.path.exists(path):
        return
    if not os.path.isfile(path):
        raise InputError(f"MLflow's database {str(path)!r} is no file but a device or a pipe. Name a file.")
    if not os.access(path, os.W_OK):  # sqlite opens it all the same, to read
        raise _unwritable(path, "permission denied")
    try:
        with _opened(path) as opened:
            _check_content(opened, path)
            opened.execute("begin immediate")  # refused where another process holds it
            opened.rollback()
    except sqlite3.Error as error:
        raise _refusal(path, error) from error


def _check_folder(path: Path) -> None:
    """sqlite writes its journal beside the database. Tried: a file system may be read-only for root too."""
    try:
        folder = next(parent for parent in path.parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise InputError(
            f"MLflow's database {str(path)!r}: nothing can be written into {str(folder)!r} "
            f"({error.strerror or error}). Name another place."
        ) from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    place = f"file:{quote(str(path))}?mode=rw"
    with contextlib.closing(sqlite3.connect(place, uri=True, timeout=_PATIENCE)) as opened:
        opened.isolation_level = None
        yield opened


def _check_content(opened: sqlite3.Connection, path: Path) -> None:
    tables = {name for (name,) in opened.execute("select name from sqlite_master where type = 'table'")}
    if not tables:
        return  # MLflow fills it
    if not tables >= _TABLES:
        raise InputError(
            f"{str(path)!r} is a sqlite database of something else (tables {', '.join(sorted(tables)[:5])}), "
            "not of MLflow. Name another file."
        )
    if path.stat().st_size <= _QUICK:
        ((found,),) = opened.execute("pragma quick_check(1)")
        if found != "ok":
            raise sqlite3.DatabaseError(found)
    revisions = (
        [str(number) for (number,) in opened.execute("select version_num from alembic_version")]
        if "alembic_version" in tables
        else []
    )
    _check_revision(path, revisions)


def _check_revision(path: Path, found: list[str]) -> None:
    version = importlib.metadata.version("mlflow")
    known, last = _revisions()
    if not known or found == [last]:
        return
    if len(found) == 1 and found[0] in known:
        raise InputError(
            f"MLflow's database {str(path)!r} is of an older MLflow (schema {found[0]}) than the {version} "
            f"here. Keep a copy of it and run: mlflow db upgrade 'sqlite:///{path}'"
        )
    raise InputError(
        f"MLflow's database {str(path)!r} has the schema {', '.join(found) or 'of no version'}, which MLflow "
        f"{version}, installed here, does not know: a newer one made it. Install that, as by "
        f"`pip install 'mlflow>{version}'`. Or move the database away: what the storage holds is recorded "
        "again by the same command."
    )


def _revisions() -> tuple[set[str], str]:
    """The schemas that the MLflow installed here knows, and the one that it needs: of its migrations."""
    spec = importlib.util.find_spec("mlflow")
    own: set[str] = set()
    earlier: set[str] = set()
    for root in (spec and spec.submodule_search_locations) or ():
        for file in Path(root, "store", "db_migrations", "versions").glob("*.py"):
            for down, revision in _REVISION.findall(file.read_text(encoding="utf-8")):
                (earlier if down else own).add(revision)
    last = own - earlier
    return (own, last.pop()) if len(last) == 1 else (set(), "")  # where they branch, MLflow itself judges


def _refusal(path: Path, error: sqlite3.Error) -> InputError:
    reason = str(error)
    if "locked" in reason or "busy" in reason:
        return DatabaseLocked(
            f"MLflow's database {str(path)!r} is locked by another process for more than {_PATIENCE:.0f} s "
            f"({reason}). End that process (`fuser {path}` names it), or wait for it."
        )
    if "readonly" in reason or "unable to open" in reason:
        return _unwritable(path, reason)
    return InputError(
        f"MLflow's database {str(path)!r} is no sqlite database, or a damaged one ({reason}). {_AWAY}"
    )


def _unwritable(path: Path, reason: str) -> InputError:
    return InputError(
        f"MLflow's database {str(path)!r} cannot be written ({reason}). Mend its permissions, or name "
        "another place."
    )
