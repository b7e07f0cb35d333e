"""A program that starts our Ray session of one machine twice, tells how it is reached, and waits.

Prints one line of JSON for each session: its ports, what the doctor says of them, its token, its folder, and
the environment before, meanwhile and after. The second one has Ray's dashboard, for its job server, and lasts
until a line comes on standard input.
"""

import functools
import json
import os
import sys
from typing import Any

import ray
from ray._private import parameter
from servers import _free_port

from neulig_ray.cli.doctor.doors import doors
from neulig_ray.cluster import ray_internals
from neulig_ray.cluster.ray_auth import asks_for_token
from neulig_ray.cluster.session import ClusterSession

NAMES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
start = ray.init


class Held:
    """A worker that stays; Ray ends those that have nothing to do."""

    def settings(self) -> dict[str, str | None]:
        return settings()


def with_dashboard(**options: Any) -> Any:
    return start(**{**options, "include_dashboard": True})


def settings() -> dict[str, str | None]:
    asked = {"asked": str(asks_for_token())}  # what Ray made of them
    return {name: os.environ.get(name) for name in NAMES} | asked


def session(*, wait: bool) -> None:
    told: list[str] = []
    before = settings()
    cluster = ClusterSession(None, (), say=told.append)
    cluster.start()
    held = ray.remote(Held).remote()
    node = ray_internals.started_node()
    found = {
        "before": before,
        "inside": settings(),
        "worker": ray.get(held.settings.remote()),
        "said": told,
        "gcs": int(node.gcs_address.rpartition(":")[2]),
        "dashboard": node.webui_url,
        "agent": node.dashboard_agent_listen_port,
        "folder": ray_internals.session_folder(),
        "doors": [[door.what, door.address, door.port, door.metrics] for door in doors()],
        "commands": commands(),
    }
    if wait:
        print(json.dumps(found), flush=True)
        sys.stdin.readline()
    cluster.stop()
    found["after"] = settings()
    print(json.dumps(found), flush=True)


def commands() -> list[str]:
    """The command lines of this process's children, which everybody on the machine can read."""
    import psutil

    return [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]


if __name__ == "__main__":
    session(wait=False)
    ray.init = with_dashboard
    # Another Ray of this machine may have the agent's usual port; it would then do without.
    parameter.RayParams = functools.partial(parameter.RayParams, dashboard_agent_listen_port=_free_port())
    session(wait=True)
