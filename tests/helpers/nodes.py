"""Clusters of several nodes for tests: taking a node away, and what happened on them when a test fails."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from conftest import Command

PROGRAM = (str(Path(__file__).parent / "node_cluster.py"),)
PATIENCE = 600.0  # seconds: a guard against waiting without end, not an expectation


class Nodes:
    """A cluster of a head without CPUs and two nodes of one CPU each, run by `node_cluster.py`."""

    def __init__(self, program: Command) -> None:
        self._program = program
        with self.told_on_failure():
            program.wait_until(lambda: len(self._said("node")) == 2, "two nodes", PATIENCE)
        self.address = self._said("address")[0]

    def _said(self, word: str) -> list[str]:
        lines = [line.split() for line in self._program.output.splitlines()]
        return [line[1] for line in lines if len(line) == 2 and line[0] == word]

    def take_away(self, node: int, *, announced: bool = False) -> None:
        """Kill a node (its raylet's pid) with all its processes; another one comes in its place.

        `announced`: a moment after Ray was told, as with a spot node that is taken back.
        """
        self._program.tell(f"{'preempt' if announced else 'kill'} {node}")
        self._program.tell("add")
        self._program.wait_until(
            lambda: str(node) in self._said("killed"), f"the end of node {node}", PATIENCE
        )

    @contextlib.contextmanager
    def told_on_failure(self) -> Iterator[None]:
        """Adds to an error what the cluster's program said, and what Ray's own processes wrote as errors."""
        try:
            yield
        except BaseException as error:
            load = " ".join(f"{one:.0f}" for one in os.getloadavg())
            error.add_note(f"load {load}; the cluster said:\n{self._program.output[-3000:]}")
            for folder in self._said("logs"):
                for log in sorted(Path(folder).glob("*.err")):
                    if text := log.read_text(errors="replace").strip():
                        error.add_note(f"{log}:\n{text[-1500:]}")
            raise


def title(pid: int) -> str:
    """What a process calls itself; Ray names its own after the work in hand."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace").strip()
    except OSError:
        return ""
