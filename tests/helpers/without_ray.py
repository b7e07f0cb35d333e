"""Tests of what is told before Ray starts: nothing does start."""

import os
from typing import Any

import pytest

from neulig_ray.cluster import ray_auth


def no_ray_runs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """No Ray is there; what would start or join one notes down how, and with which token.

    Ray itself reads nothing anew: the suite's own session may be running in this process.
    tests/cluster/test_doors.py has it do so.
    """
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
