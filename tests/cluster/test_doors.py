"""The doors of the session that a run starts: strangers are out, over loopback and over the outer address.

A stranger is another process of this machine with an environment and a home folder of its own.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import Command

pytestmark = pytest.mark.timeout(600)

HERE = Path(__file__).parents[1] / "helpers"
PATIENCE = 300.0  # seconds; each step takes some ten on a machine that has nothing else to do
LOOPBACK = "127.0.0.1"


def outer_address() -> str:
    """This machine's own address on its network; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address of documentation
        except OSError:
            pytest.skip("needs a network beside loopback: connect this machine, or add a dummy interface")
        return str(probe.getsockname()[0])


class Session:
    """Two sessions, one after the other, as `door_session.py` tells of them; the second one runs."""

    def __init__(self, program: Command, folder: Path) -> None:
        self.program = program
        self.folder = folder
        program.wait_until(lambda: len(self.told()) == 2, "two sessions", PATIENCE)
        self.first, self.found = self.told()

    def told(self) -> list[dict[str, Any]]:
        lines = [line for line in self.program.output.splitlines(keepends=True) if line.startswith("{")]
        return [json.loads(line) for line in lines if line.endswith("\n")]

    @property
    def token(self) -> str:
        return str(self.found["inside"]["RAY_AUTH_TOKEN"])

    def stranger(self, *arguments: object, token: str | None = None) -> str:
        """What a process says that tries a door; without a token it knows of none."""
        home = self.folder / "elsewhere"
        home.mkdir(exist_ok=True)
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        given = {} if token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        once = {"RAY_gcs_server_port_wait_time_s": "1", "HOME": str(home)}  # else Ray tries for 20 s
        done = subprocess.run(
            [sys.executable, HERE / "stranger.py", *map(str, arguments)],
            env={**kept, **once, **given}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout


@pytest.fixture(scope="module")
def session(start_command: Callable[..., Command], tmp_path_factory: pytest.TempPathFactory) -> Session:
    """Sessions of a user whose environment says that Ray is to ask for no token."""
    folder = tmp_path_factory.mktemp("doors")
    home = folder / "home"
    home.mkdir()
    open_to_all = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "", "HOME": str(home)}
    return Session(start_command(program=(HERE / "door_session.py",), **open_to_all), folder)


@pytest.fixture(scope="module")
def tries(session: Session) -> dict[tuple[str, str, str], str]:
    """(door, host, token) -> what became of the try."""
    outer, gcs = outer_address(), session.found["gcs"]
    tokens = {"none": None, "wrong": "0" * 64, "right": session.token}
    asked: dict[tuple[str, str, str], tuple[object, ...]] = {}
    for token in tokens:
        for host, name in ((LOOPBACK, "loopback"), (outer, "outer")):
            asked["task", name, token] = ("task", f"{host}:{gcs}")
            asked["kv", name, token] = ("kv", f"{host}:{gcs}")
            ports = {"job": session.found["dashboard"].rpartition(":")[2], "agent": session.found["agent"]}
            for door, path in (("job", "api/jobs/"), ("agent", "api/job_agent/jobs/")):
                file = session.folder / f"{door}-{name}-{token}"
                asked[door, name, token] = ("job", f"http://{host}:{ports[door]}/{path}", file)
    with ThreadPoolExecutor(3) as pool:
        answers = {
            key: pool.submit(session.stranger, *arguments, token=tokens[key[2]])
            for key, arguments in asked.items()
        }
    return {key: answer.result() for key, answer in answers.items()}


DOORS = ("task", "kv", "job", "agent")


@pytest.mark.parametrize("token", ["none", "wrong"])
@pytest.mark.parametrize("host", ["loopback", "outer"])
@pytest.mark.parametrize("door", DOORS)
def test_a_stranger_is_refused(
    tries: dict[tuple[str, str, str], str], session: Session, door: str, host: str, token: str
) -> None:
    answer = tries[door, host, token]
    assert answer.startswith("out "), answer
    if door in ("kv", "agent") or (door, host) == ("job", "loopback"):
        reasons = ("HTTP Error 401", "HTTP Error 403", "AuthenticationError")
        assert any(reason in answer for reason in reasons), f"not refused for its token: {answer}"
    assert not (session.folder / f"{door}-{host}-{token}").exists(), "the job ran"


@pytest.mark.parametrize("host", ["loopback", "outer"])
@pytest.mark.parametrize("door", DOORS)
def test_who_has_the_token_gets_in(
    tries: dict[tuple[str, str, str], str], session: Session, door: str, host: str
) -> None:
    answer = tries[door, host, "right"]
    if (door, host) == ("job", "outer"):
        assert "refused" in answer, "the dashboard listens on loopback alone"
        return
    assert answer.startswith("in "), answer
    until = time.monotonic() + PATIENCE
    while door in ("job", "agent") and not (session.folder / f"{door}-{host}-right").exists():
        assert time.monotonic() < until, "the job did not run"
        time.sleep(0.1)


def test_each_port_does_as_the_doctor_says(session: Session) -> None:
    outer = outer_address()
    doors = session.found["doors"]
    assert {"GCS", "raylet", "workers", "driver", "agent", "runtime-env agent", "dashboard", "metrics"} == {
        door[0] for door in doors
    }
    asked = [
        (what, metrics, f"{host}:{port}")
        for what, address, port, metrics in doors
        for host in ((LOOPBACK, outer) if address in ("::", "0.0.0.0") else (address,))
    ]
    answers = session.stranger("listeners", *(where for *_, where in asked)).splitlines()
    refused = set()
    for (what, metrics, where), answer in zip(asked, answers, strict=True):
        if what == "workers" and answer.endswith("UNAVAILABLE"):
            continue  # an idle one that Ray has ended meanwhile
        assert answer.startswith("in " if metrics else "out "), f"{what} {where}: {answer}"
        refused.add(what)
    assert "workers" in refused


def test_the_token_is_the_sessions_own_and_nowhere_but_in_the_environment(session: Session) -> None:
    for found in (session.first, session.found):
        assert found["worker"] == found["inside"]
        assert found["inside"]["RAY_AUTH_MODE"] == "token"
        assert len(found["inside"]["RAY_AUTH_TOKEN"]) == 64
        assert not [line for line in found["commands"] if found["inside"]["RAY_AUTH_TOKEN"] in line]
        assert any("RAY_AUTH_MODE is 'disabled', which is not followed" in line for line in found["said"])
    assert session.token != session.first["inside"]["RAY_AUTH_TOKEN"]
    holding = [
        file
        for folder in (session.found["folder"], session.folder)
        for file in Path(folder).rglob("*")
        if file.is_file() and session.token.encode() in file.read_bytes()
    ]
    assert not holding
    assert not (session.folder / "home" / ".ray").exists()


def test_afterwards_the_environment_is_as_before(session: Session) -> None:
    assert session.first["after"] == session.first["before"]
    assert session.first["before"]["asked"] == "False"
    assert session.first["inside"]["asked"] == "True"
    session.program.tell("end")
    assert session.program.wait(PATIENCE) == 0, session.program.output
    found = session.told()[-1]
    assert found["after"] == found["before"] == session.first["before"]


@pytest.mark.ray
def test_no_record_of_a_run_holds_the_token(smallest_storage: Path) -> None:
    token = os.environ["RAY_AUTH_TOKEN"].encode()
    files = [file for file in smallest_storage.rglob("*") if file.is_file()]
    assert {"results.json", "report.html", "mlflow.db"} <= {file.name for file in files}
    assert not [file for file in files if token in file.read_bytes()]
