"""Clusters of several nodes for tests: which node does what, and killing it in the middle of that."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Command

PROGRAM = (str(Path(__file__).parent / "node_cluster.py"),)


class Nodes:
    """A cluster of a head without CPUs and two nodes of one CPU each, run by `node_cluster.py`."""

    def __init__(self, program: Command) -> None:
        self._program = program
        program.wait_until(lambda: program.output.count("node ") == 2, "two nodes", timeout=180)
        self.address = self._said("address")[0]

    @property
    def alive(self) -> list[int]:
        """The raylets of the nodes that can do work."""
        return [int(pid) for pid in self._said("node") if pid not in self._said("killed")]

    def _said(self, word: str) -> list[str]:
        lines = [line.split() for line in self._program.output.splitlines()]
        return [line[1] for line in lines if len(line) == 2 and line[0] == word]

    def workers(self, work: str) -> Iterator[tuple[int, int]]:
        """(raylet, worker) of processes that Ray names after the work in hand."""
        for node in self.alive:
            with contextlib.suppress(OSError):
                for file in Path(f"/proc/{node}/task").glob("*/children"):
                    for worker in map(int, file.read_text().split()):
                        if title(worker).startswith(work):
                            yield node, worker

    def caught(self, work: str, command: Command, timeout: float = 300) -> tuple[int, int]:
        """A worker in the middle of work of that name, stopped there."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            for node, worker in self.workers(work):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGSTOP)
                    if title(worker).startswith(work):
                        return node, worker
                    os.kill(worker, signal.SIGCONT)
            if command.process.poll() is not None:
                pytest.fail(f"ended before {work}:\n{command.output[-4000:]}")
            time.sleep(0.003)
        pytest.fail(f"{timeout} s without {work}:\n{command.output[-4000:]}")

    def kill(self, node: int) -> None:
        """Take a node away with all its processes, and add another one in its place."""
        self._program.tell(f"kill {node}")
        self._program.tell("add")
        killed: Callable[[], bool] = lambda: str(node) in self._said("killed")  # noqa: E731
        self._program.wait_until(killed, f"the end of node {node}", timeout=60)


def title(pid: int) -> str:
    """What a process calls itself; Ray names its own after the work in hand."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace").strip()
    except OSError:
        return ""
