"""Gates: where the workers of a run wait before they store what they made, to be killed there.

A plugin of the run, so that every worker has it, on whatever node it starts.
"""

import textwrap
from pathlib import Path
from typing import NamedTuple

_PLUGIN = '''
"""Nothing of a kind whose gate is closed is stored. Who waits there leaves its parent's pid and its own."""

import os
import time
from pathlib import Path

from neulig_ray.storage.storage import Storage

commit = Storage.commit


def through_the_gate(self, artifact, files, info):
    gate = Path({folder!r}) / artifact.kind
    if gate.is_dir():
        (gate / f"{{os.getppid()}}-{{os.getpid()}}").touch()
        while gate.is_dir():
            time.sleep(0.05)
    commit(self, artifact, files, info)


Storage.commit = through_the_gate
'''


class Waiting(NamedTuple):
    """A worker at a gate, and the raylet of its node."""

    node: int
    worker: int


class Gates:
    """One gate for each kind of artifact, all open. `flags` are what a run needs to have them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        plugin = folder / "gates.py"
        plugin.write_text(textwrap.dedent(_PLUGIN).lstrip().format(folder=str(folder)))
        self.flags = ("--plugins", str(plugin))

    def close(self, kind: str) -> None:
        (self._folder / kind).mkdir()

    def open(self, kind: str) -> None:
        (self._folder / kind).rename(self._folder / f"{kind}.open")

    def waiting(self, kind: str) -> list[Waiting]:
        """Workers that are alive, the first comer first."""
        came = sorted((self._folder / kind).iterdir(), key=lambda file: file.stat().st_mtime_ns)
        found = [Waiting(*map(int, file.name.split("-"))) for file in came]
        return [one for one in found if _parent(one.worker) == one.node]


def _parent(pid: int) -> int:
    """The parent of a process; 0 for one that has ended."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return 0
    return 0 if state in "ZX" else int(parent)
