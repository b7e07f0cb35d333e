"""Why Ray cannot start here, or did not: each cause has its own remedy, and others none that is false."""

import errno
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from without_ray import no_ray_runs

from neulig_ray.cluster import ray_start
from neulig_ray.cluster.session import ClusterSession
from neulig_ray.errors import InputError, StageError
from neulig_ray.paths import check_roots

pytestmark = pytest.mark.timeout(120)

no_session = pytest.fixture(autouse=True)(no_ray_runs)


def refused_here(monkeypatch: pytest.MonkeyPatch, **settings: str) -> str:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as caught:
        ClusterSession(None, ()).start()
    return str(caught.value)


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("length", [60, 90, 250], ids=["F17", "longer", "longest"])
def test_a_folder_whose_name_is_too_long_for_sockets(
    name: str, length: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_session: list[Any]
) -> None:
    folder = f"/{'a' * length}/job"
    text = refused_here(monkeypatch, **{name: folder})
    assert f"{name} is {folder!r}, {length + 5} bytes" in text
    assert "at most 107 bytes" in text
    assert "such as /tmp" in text
    assert not no_session
    # What is said to fit does, and no byte more.
    fits = int(text.partition("which leaves ")[2].split()[0])
    session = f"ray/session_2026-11-25_11-34-44_558459_{os.getpid()}/sockets/plasma_store"
    assert len(f"/{'a' * (fits - 1)}/{session}") == 107


def test_the_length_is_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "62 bytes" in refused_here(monkeypatch, TMPDIR=f"/{'é' * 30}x")


def test_a_folder_of_just_the_length_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_session: list[Any]
) -> None:
    from ray._private.utils import validate_socket_filepath

    below = f"/ray/session_2026-11-25_11-34-44_558459_{os.getpid()}/sockets/plasma_store"
    link = Path("/tmp") / f"n{secrets.token_hex(4)}".ljust(107 - len(below) - len("/tmp/"), "x")
    link.symlink_to(tmp_path)
    try:
        validate_socket_filepath(f"{link}{below}")
        monkeypatch.setenv("RAY_TMPDIR", str(link))
        ClusterSession(None, ()).check()
        with pytest.raises(OSError, match="AF_UNIX"):
            validate_socket_filepath(f"{link}x{below}")
        assert "bytes" in refused_here(monkeypatch, RAY_TMPDIR=f"{link}x")
    finally:
        link.unlink()


@pytest.mark.parametrize("value", ["", "relative/folder", "~/tmp"], ids=["empty", "relative", "home"])
def test_a_folder_that_is_no_absolute_path(
    value: str, monkeypatch: pytest.MonkeyPatch, no_session: list[Any]
) -> None:
    """Ray waits for 30 s, and then tells of a machine that is overloaded."""
    text = refused_here(monkeypatch, TMPDIR=value)
    assert f"TMPDIR is {value!r}" in text
    assert "no absolute path" in text
    assert not no_session


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EACCES, "Permission denied. Set TMPDIR"),
        (errno.EROFS, "Read-only file system. Set TMPDIR"),
        (errno.ENOSPC, "No space left on device. Make room there. Set TMPDIR"),
        (errno.EDQUOT, "Disk quota exceeded. Make room there. Set TMPDIR"),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else "",
)
def test_a_folder_that_cannot_be_written(
    number: int, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_session: list[Any]
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", failing(number))
    monkeypatch.setattr(ray_start, "_SOCKET_NAME", 10_000)
    text = refused_here(monkeypatch, TMPDIR=str(tmp_path))
    assert f"TMPDIR is {str(tmp_path)!r}" in text
    assert told in text
    assert not no_session


def test_a_file_where_a_folder_should_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(ray_start, "_SOCKET_NAME", 10_000)
    assert "Not a directory" in refused_here(monkeypatch, RAY_TMPDIR=f"{tmp_path}/file")


def test_without_shared_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_session: list[Any]
) -> None:
    monkeypatch.setattr(ray_start, "_SHARED", str(tmp_path / "shm"))
    assert "mount a tmpfs there (Docker: --shm-size)" in refused_here(monkeypatch)
    assert not no_session


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Exception("The current node timed out during startup."), "the same command goes on"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "short of memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "Make room"),
        (ValueError("Attempting to cap object store memory usage at 5 bytes, but"), "short of memory"),
        (RuntimeError("Failed to start GCS."), "Ray's own logs: "),
    ],
    ids=["busy", "files", "processes", "memory", "disk", "object store", "unknown"],
)
def test_each_cause_has_its_own_remedy(error: Exception, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", fail)
    before = dict(os.environ)
    with pytest.raises(StageError) as caught:
        ClusterSession(None, ()).start()
    text = str(caught.value)
    assert text.startswith(f"Ray did not start on this machine: {error}. ")
    assert told in text
    others = {"the same command goes on", "ulimit -n", "ulimit -u", "short of memory", "Make room"} - {told}
    assert not [other for other in others if other in text]
    assert dict(os.environ) == before


# Our own folders -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["NEULIG_DATA", "NEULIG_CACHE"])
@pytest.mark.parametrize("below", ["", "/deeper/still"])
def test_a_root_that_is_a_file(
    name: str, below: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    value = f"{tmp_path}/file{below}"
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"^{name} is '{value}', and '{tmp_path}/file' is no folder"):
        check_roots(cache=False)


def test_a_root_of_a_user_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEULIG_DATA", "~nobody-of-this-name/data")
    with pytest.raises(InputError, match=r"^NEULIG_DATA is '~nobody-of-this-name/data': "):
        check_roots(cache=False)


def test_a_cache_matters_where_the_storage_is_elsewhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NEULIG_CACHE", str(tmp_path / "new"))
    check_roots(cache=True)
    monkeypatch.setattr(os, "access", lambda *_: False)
    check_roots(cache=False)
    with pytest.raises(InputError, match=r"^NEULIG_CACHE is .* cannot be written"):
        check_roots(cache=True)
