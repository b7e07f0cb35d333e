"""RAY_ADDRESS and --address: told by the one that was given, before anything is started."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from without_ray import no_ray_runs

from neulig_ray.cluster import session as cluster_module
from neulig_ray.cluster.ray_address import given
from neulig_ray.cluster.session import ClusterSession
from neulig_ray.errors import InputError

pytestmark = pytest.mark.timeout(120)

no_session = pytest.fixture(autouse=True)(no_ray_runs)


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
        ClusterSession(flag, ()).check()
    text = str(caught.value)
    assert text.startswith(f"{by} {'is ' * (by == 'RAY_ADDRESS')}{value!r}: ")
    assert told in text
    assert "HOST:PORT" in text
    assert remedy in text
    assert other not in text


def test_a_password_in_an_address_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://me:secret@head:8265")
    with pytest.raises(InputError) as caught:
        ClusterSession(None, ()).check()
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
            ClusterSession(None, ()).start()
    assert not no_session


def test_a_name_that_nobody_knows(monkeypatch: pytest.MonkeyPatch, no_session: list[Any]) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "no-such-head.invalid:6379")
    with pytest.raises(
        InputError, match=r"^RAY_ADDRESS is .*the name 'no-such-head\.invalid' is unknown here"
    ):
        ClusterSession(None, ()).start()
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
        ClusterSession(None, ()).start()
    assert not no_session


@pytest.mark.parametrize(
    "value",
    ["auto", "192.0.2.7:6379", "head.example:6379", "[2001:db8::7]:6379"],
    ids=["46b", "an address", "a name", "an address of six"],
)
def test_what_was_joined_is_said(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    monkeypatch.setattr(cluster_module, "_join", lambda address, options: "192.0.2.7:6379")
    monkeypatch.setattr("neulig_ray.cluster.ray_address.Address.check_answers", lambda self: None)
    monkeypatch.setattr(ClusterSession, "describe", lambda self: "3 nodes")
    said: list[str] = []
    cluster = ClusterSession(None, (), say=said.append)
    cluster.start()
    cluster.stop()
    assert said == [f"joined 192.0.2.7:6379 (RAY_ADDRESS is {value!r}): 3 nodes"]
