"""What listens while a Ray session of this machine runs, and who may talk to it. docs/security.md"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from neulig_ray.cluster import ray_internals

_EVERY: Final = ("::", "0.0.0.0")  # noqa: S104 - the addresses by which the kernel names every interface


@dataclass(frozen=True, order=True)
class Door:
    """A port that a process of the session listens at; `metrics`: it gives out numbers, to whoever asks."""

    what: str
    address: str
    port: int
    metrics: bool = False


def doors() -> list[Door]:
    """What this process and its children listen at. This process started the Ray session that runs."""
    import psutil  # type: ignore[import-untyped]  # Ray's own copy, which is found once Ray is imported

    node, here = ray_internals.started_node(), psutil.Process()
    found = []
    for process in (here, *here.children(recursive=True)):
        try:
            command = process.cmdline()
            sockets = [one for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
        except psutil.Error:  # it has ended meanwhile
            continue
        for socket in sockets:
            port = int(socket.laddr.port)
            what = "driver" if process.pid == here.pid else _what(command, port, node)
            found.append(Door(what, str(socket.laddr.ip), port, metrics=what == "metrics"))
    return sorted(found)


def told(found: Iterable[Door], *, token: bool) -> str:
    """The doors in words: a line for each address, and who may talk to what listens there."""
    lines: dict[tuple[str, bool], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for door in sorted(found):
        address = "every interface" if door.address in _EVERY else door.address
        lines[address, token and not door.metrics][door.what].append(door.port)
    return "\n".join(
        f"{address}, {'with the token alone' if closed else 'for anybody'}: "
        + ", ".join(f"{what} {' '.join(map(str, ports))}" for what, ports in here.items())
        for (address, closed), here in sorted(lines.items(), key=lambda line: (not line[0][1], line[0][0]))
    )


def _what(command: Sequence[str], port: int, node: Any) -> str:
    """Which part of Ray listens. Its Python processes rename themselves (ray::...) soon after their start."""
    program = " ".join(command[:3])
    if port == node.metrics_export_port:
        return "metrics"
    if "/dashboard.py" in program or "/monitor.py" in program:
        return "dashboard" if str(node.webui_url).endswith(f":{port}") else "metrics"
    for what, words in (
        ("GCS", ("/gcs_server",)),
        ("raylet", ("/raylet",)),
        ("runtime-env agent", ("/runtime_env/agent/", "ray::RuntimeEnvAgent")),
        ("agent", ("/dashboard/agent.py", "ray::DashboardAgent")),
    ):
        if any(word in program for word in words):
            return what
    return "workers"
