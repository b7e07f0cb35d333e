"""Tokens: a cluster's, which must be there and fit, and those of sessions of this machine alone."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from without_ray import no_ray_runs

from neulig_ray.cluster import ray_auth
from neulig_ray.cluster.session import ClusterSession
from neulig_ray.errors import InputError

pytestmark = pytest.mark.timeout(120)

no_session = pytest.fixture(autouse=True)(no_ray_runs)


# Of a cluster ----------------------------------------------------------------------------------------------


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
    monkeypatch.setattr("neulig_ray.cluster.ray_address.Address.check_answers", lambda self: None)
    with pytest.raises(InputError) as caught:
        ClusterSession("192.0.2.7:6379", ()).start()
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


# Of a session of this machine alone ------------------------------------------------------------------------


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
        cluster = ClusterSession(None, (), say=said.append)
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
            cluster = ClusterSession(None, (), say=said.append)
            cluster.start()
            assert os.environ["RAY_AUTH_MODE"] == mode
            cluster.stop()
        assert [("asks for no token" in line) for line in said] == [True] * told
    assert dict(os.environ) == before
    assert not no_session
