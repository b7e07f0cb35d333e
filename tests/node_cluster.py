"""A Ray cluster of several nodes on this machine: a program that obeys lines on its standard input.

`add` adds a node of one CPU, `kill PID` takes away the node of that raylet, at once and with its workers.
It prints `address HOST:PORT`, then `node PID` for each node that can do work. The head offers no CPUs.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import ray._private.utils
from ray.cluster_utils import Cluster

# Else a ray.init of anybody on this machine that names no address would join this cluster.
ray._private.utils.write_ray_address = lambda *arguments, **options: None


def raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(one) for file in Path(f"/proc/{pid}/task").glob("*/children")
                for one in file.read_text().split()]  # fmt: skip
    return []


def main() -> None:
    memory = 200 * 2**20
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": memory, "include_dashboard": False},
    )
    print("address", cluster.address, flush=True)
    nodes: dict[int, Any] = {}

    def add() -> None:
        node = cluster.add_node(num_cpus=1, object_store_memory=memory)
        nodes[raylet(node)] = node
        print("node", raylet(node), flush=True)

    add()
    add()
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "add":
            add()
        elif command == "kill":
            node = nodes.pop(pid := int(arguments[0]))
            orphans = children(pid)
            cluster.remove_node(node, allow_graceful=False)
            for orphan in orphans:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(orphan, signal.SIGKILL)
            print("killed", pid, flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
