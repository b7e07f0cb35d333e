"""A Ray cluster of several nodes on this machine: a program that obeys lines on its standard input.

`add` adds a node of one CPU. `kill PID` takes away the node of that raylet, at once and with its workers;
`preempt PID` does so three seconds after saying that it will, as clouds do with spot nodes.
It prints `address HOST:PORT` and `logs FOLDER`, then `node PID` for each node that can do work. The head
offers no CPUs.
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import ray._private.utils
import ray._raylet
from ray._private import services
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

PATIENCE = 600  # seconds for a node to start. Ray gives it 30, which a machine with much else to do exceeds

# Else a ray.init of anybody on this machine that names no address would join this cluster.
ray._private.utils.write_ray_address = lambda *arguments, **options: None
_get_node = services.get_node


def patient_get_node(*arguments: Any) -> Any:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return _get_node(*arguments)
        except RuntimeError:  # not there yet
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


services.get_node = patient_get_node


def raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def announce_end(address: str, node_id: str, seconds: float) -> None:
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = int(1000 * (time.time() + seconds))
    accepted, why = ray._raylet.GcsClient(address=address).drain_node(node_id, reason, "taken back", deadline)
    assert accepted, why
    time.sleep(seconds)


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(one) for file in Path(f"/proc/{pid}/task").glob("*/children")
                for one in file.read_text().split()]  # fmt: skip
    return []


def main() -> None:
    memory = 200 * 2**20
    os.environ["RAY_gcs_server_port_wait_time_s"] = str(PATIENCE)  # noqa: SIM112 - Ray's name for it
    cluster = Cluster()

    def start(**arguments: Any) -> Any:
        node = cluster.add_node(wait=False, object_store_memory=memory, **arguments)
        cluster._wait_for_node(node, timeout=PATIENCE)
        return node

    # A lost node is told from a slow one by refused connections: looked for each second, not each third.
    head = start(num_cpus=0, include_dashboard=False, _system_config={"health_check_period_ms": 1000})
    print("address", cluster.address, flush=True)
    print("logs", head.get_logs_dir_path(), flush=True)
    nodes: dict[int, Any] = {}

    def add() -> None:
        node = start(num_cpus=1)
        nodes[raylet(node)] = node
        print("node", raylet(node), flush=True)

    add()
    add()
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "add":
            add()
        elif command in ("kill", "preempt"):
            node = nodes.pop(pid := int(arguments[0]))
            if command == "preempt":
                announce_end(cluster.address, node.node_id, seconds=3)
            orphans = children(pid)
            cluster.remove_node(node, allow_graceful=False)
            for orphan in orphans:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(orphan, signal.SIGKILL)
            print("killed", pid, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
