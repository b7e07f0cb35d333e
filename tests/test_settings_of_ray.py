"""What the environment says of Ray and of our folders: told by its name, before anything is started.

Ray itself is not asked: the suite's own session may be running in this process. tests/test_doors.py asks it.
"""

import errno
import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from neulig_ray.errors import InputError, StageError
from neulig_ray.paths import check_roots
from neulig_ray.stages import cluster as cluster_module
from neulig_ray.stages import ray_auth, ray_start
from neulig_ray.stages.cluster import Cluster
from neulig_ray.stages.ray_address import given

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def no_session(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """No Ray is there, and what would start or join one notes down how, with the token of that moment."""
    import ray

    started: list[dict[str, Any]] = []

    def init(**options: Any) -> None:
        started.append({**options, "token": os.environ.get("RAY_AUTH_TOKEN")})

    def asks_for_token() -> bool:
        return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"

    monkeypatch.setattr(ray_auth, "_read_again", lambda: None)
    monkeypatch.setattr(ray_auth, "asks_for_token", asks_for_token)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    return started


@contextmanager
def listening(answer: bytes) -> Iterator[int]:
    """The port of a server that says `answer` to whoever speaks to it."""

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.recv(100)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


# The address -----------------------------------------------------------------------------------------------

ADDRESSES = {
    "F16": ("http://127.0.0.1:8265", "address of the job server"),
    "https": ("https://head:8265", "address of the job server"),
    "another scheme": ("redis://head:6379", "no address of a Ray cluster"),
    "no port": ("head", "not of the form HOST:PORT"),
    "no host": (":6379", "not of the form HOST:PORT"),
    "a path": ("head:6379/", "'6379/' is no port"),
    "port of letters": ("head:ray", "'ray' is no port"),
    "port too high": ("head:70000", "'70000' is no port"),
    "client without a port": ("ray://head", "not of the form HOST:PORT"),
    "two words": ("head :6379", "not of the form HOST:PORT"),
    "bare IPv6": ("fe80::1:6379", "not of the form HOST:PORT"),
}


@pytest.mark.parametrize(("value", "told"), ADDRESSES.values(), ids=list(ADDRESSES))
@pytest.mark.parametrize("by", ["RAY_ADDRESS", "--address"])
def test_an_address_that_is_none(
    by: str, value: str, told: str, monkeypatch: pytest.MonkeyPatch, no_session: list[Any]
) -> None:
    if by == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", value)
        flag, remedy, other = None, "unset RAY_ADDRESS", "--address"
    else:
        flag, remedy, other = value, "leave --address out", "RAY_ADDRESS"
    with pytest.raises(InputError) as caught:
        Cluster(flag, ()).check()
    text = str(caught.value)
    assert text.startswith(f"{by} {'is ' * (by == 'RAY_ADDRESS')}{value!r}: ")
    assert told in text
    assert "HOST:PORT" in text
    assert remedy in text
    assert other not in text


def test_a_password_in_an_address_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://me:secret@head:8265")
    with pytest.raises(InputError) as caught:
        Cluster(None, ()).check()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "a web server answers, such as Ray's own dashboard"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak its protocol"),
        (b"", "does not speak its protocol"),
    ],
    ids=["dashboard", "ssh", "silent"],
)
def test_something_else_at_the_address(
    answer: bytes, told: str, monkeypatch: pytest.MonkeyPatch, no_session: list[Any]
) -> None:
    with listening(answer) as port:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        with pytest.raises(
            InputError, match=f"^RAY_ADDRESS is '127.0.0.1:{port}': no Ray answers there: .*{told}"
        ):
            Cluster(None, ()).start()
    assert not no_session


def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch, no_session: list[Any]) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "no-such-head.invalid:6379")
    with pytest.raises(
        InputError, match=r"^RAY_ADDRESS is .*the name 'no-such-head\.invalid' is unknown here"
    ):
        Cluster(None, ()).start()
    assert not no_session


@pytest.mark.parametrize(
    ("flag", "variable", "value", "source"),
    [
        (None, "head:1", "head:1", "RAY_ADDRESS"),
        ("other:2", "head:1", "other:2", "--address"),
        ("auto", "head:1", "head:1", "RAY_ADDRESS"),
        ("auto", "", "auto", "--address"),
        (None, " auto ", "auto", "RAY_ADDRESS"),
        ("[::1]:3", "", "[::1]:3", "--address"),
    ],
)
def test_which_setting_counts(
    flag: str | None, variable: str, value: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", variable)
    found = given(flag)
    assert found is not None
    assert (found.value, found.source) == (value, source)
    found.check_form()


@pytest.mark.parametrize("settings", [(None, ""), (None, "local"), ("local", "head:1"), (None, " ")])
def test_this_machine_alone(settings: tuple[str | None, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", settings[1])
    assert given(settings[0]) is None


def test_auto_where_no_ray_runs(monkeypatch: pytest.MonkeyPatch, no_session: list[Any]) -> None:
    from ray._private import services

    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda folder: None)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(InputError, match=r"^RAY_ADDRESS is 'auto': no Ray runs on this machine"):
        Cluster(None, ()).start()
    assert not no_session


@pytest.mark.parametrize("value", ["auto", "192.0.2.7:6379"], ids=["46b", "an address"])
def test_what_was_joined_is_said(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    monkeypatch.setattr(cluster_module, "_join", lambda address, options: "192.0.2.7:6379")
    monkeypatch.setattr("neulig_ray.stages.ray_address.Address.check_answers", lambda self: None)
    monkeypatch.setattr(Cluster, "describe", lambda self: "3 nodes")
    said: list[str] = []
    cluster = Cluster(None, (), say=said.append)
    cluster.start()
    cluster.stop()
    assert said == [f"joined 192.0.2.7:6379 (RAY_ADDRESS is {value!r}): 3 nodes"]


# The token of a cluster ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"RAY_AUTH_MODE": "token"}, "RAY_AUTH_MODE is 'token', and there is no token here"),
        (
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/no/such"},
            "RAY_AUTH_TOKEN_PATH is '/no/such', where no token can be read",
        ),
        (
            {"RAY_AUTH_MODE": "TOKEN", "RAY_AUTH_TOKEN": " "},
            "RAY_AUTH_MODE is 'TOKEN', and there is no token",
        ),
    ],
    ids=["none", "file", "blank"],
)
def test_a_token_that_is_not_there(
    settings: Mapping[str, str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    no_session: list[Any],
) -> None:
    """Ray would abort the whole process."""
    for name in ray_auth.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in {**settings, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("neulig_ray.stages.ray_address.Address.check_answers", lambda self: None)
    with pytest.raises(InputError) as caught:
        Cluster("192.0.2.7:6379", ()).start()
    assert f"--address '192.0.2.7:6379': {told}" in str(caught.value)
    assert "`ray get-auth-token`" in str(caught.value)
    assert not no_session


def refusal(settings: Mapping[str, str | None]) -> str:
    with ray_auth.environment({**dict.fromkeys(ray_auth.SETTINGS), **settings}):
        return str(ray_auth.refused("--address 'h:1'"))


def test_a_token_that_does_not_fit() -> None:
    assert "asks for a token, and RAY_AUTH_MODE is not set here. Set RAY_AUTH_MODE=token" in refusal({})
    assert "RAY_AUTH_MODE is 'disabled' here" in refusal({"RAY_AUTH_MODE": "disabled"})
    assert "than the one here (RAY_AUTH_TOKEN)" in refusal({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"})


# The token of a session of this machine alone --------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "tokn"},
        {"RAY_AUTH_MODE": "token"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "weak"},
        {"RAY_AUTH_MODE": "Token", "RAY_AUTH_TOKEN_PATH": "/no/such"},
        {"RAY_AUTH_MODE": "token", "RAY_ENABLE_K8S_TOKEN_AUTH": "true"},
    ],
    ids=lambda settings: " ".join(f"{name}={value}" for name, value in settings.items()) or "nothing set",
)
def test_it_is_its_own_whatever_is_inherited(
    settings: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_session: list[Any]
) -> None:
    for name in ray_auth.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in {**settings, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    said: list[str] = []
    before = dict(os.environ)
    for _ in range(2):
        cluster = Cluster(None, (), say=said.append)
        cluster.start()
        assert ray_auth.asks_for_token()
        assert "RAY_AUTH_TOKEN_PATH" not in os.environ
        assert "RAY_ENABLE_K8S_TOKEN_AUTH" not in os.environ
        cluster.stop()
        assert dict(os.environ) == before
    first, second = (options["token"] for options in no_session)
    assert len(first) == len(second) == 64
    assert first != second
    weak = settings.get("RAY_AUTH_MODE", "token")
    assert [weak in line for line in said] == [True, True] * (weak.lower() != "token")
    assert not list(tmp_path.iterdir()), "nothing is written to the home folder"


def test_a_session_of_the_caller_is_left_as_it_is(
    monkeypatch: pytest.MonkeyPatch, no_session: list[Any]
) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    before = dict(os.environ)
    for mode, told in (("disabled", 1), ("token", 0)):
        said: list[str] = []
        with ray_auth.environment({"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": secrets.token_hex(32)}):
            cluster = Cluster(None, (), say=said.append)
            cluster.start()
            assert os.environ["RAY_AUTH_MODE"] == mode
            cluster.stop()
        assert [("asks for no token" in line) for line in said] == [True] * told
    assert dict(os.environ) == before
    assert not no_session


# Starting here ---------------------------------------------------------------------------------------------


def refused_here(monkeypatch: pytest.MonkeyPatch, **settings: str) -> str:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as caught:
        Cluster(None, ()).start()
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
        Cluster(None, ()).check()
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
        Cluster(None, ()).start()
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
