"""The process that looks through a foreign file: what it may take, and what it prints."""

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

from .choice import TensorNames, choose, parts_of
from .formats import SideFile, read
from .objects import LONGEST_NAMED, MOST_NAMED, Inert, Unreadable

MEMORY = 1 << 30  # bytes beyond what is mapped after the imports, and four times the file
_FORBIDDEN = ("os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "socket.", "subprocess.")


def extract(source: Path, side: Path, wanted: str) -> dict[str, Any]:
    """What is known of the file's weights, for the caller; see `main`."""
    left: set[str] = set()
    size = source.stat().st_size
    with source.open("rb") as file, side.open("wb") as copies:
        found = read(file, left, SideFile(copies, size))
    names = TensorNames()
    choice = choose(found, wanted, names)
    named = names.flat(choice.found)
    inert = sorted(left)
    if not named:
        kind = choice.found.name if isinstance(choice.found, Inert) else type(choice.found).__name__
        raise Unreadable(f"it holds no tensors ({kind}; names in it: {', '.join(inert[:10]) or 'none'})")
    total = sum(tensor.nbytes for tensor in named.values())
    if total > MEMORY + 4 * size:
        raise Unreadable(f"its tensors would take {total} bytes, the file has {size}")
    loose = {} if isinstance(choice.found, Inert) else parts_of(choice.found)
    odd = {name: _kind(value) for name, value in loose.items() if not names.count(value)}
    return {
        "tensors": {name: tensor.record() for name, tensor in named.items()},
        "inert": inert,
        "key": choice.key[:LONGEST_NAMED],
        "others": [name[:LONGEST_NAMED] for name in choice.others[:MOST_NAMED]],
        "odd": {name[:LONGEST_NAMED]: kind for name, kind in list(odd.items())[:MOST_NAMED]},
        "module": choice.found.name if isinstance(choice.found, Inert) else "",
    }


def _kind(value: Any) -> str:
    return (value.name or "object") if isinstance(value, Inert) else type(value).__name__


def _refuse(event: str, arguments: Any) -> None:
    """A second fence: this process starts no other, and talks to nobody, whatever the file holds."""
    if event.startswith(_FORBIDDEN):
        raise Unreadable(f"it tried {event}")


def _limit_memory(size: int) -> None:
    """No more memory than a file of this size needs, beyond what this process has mapped already."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf(
            "SC_PAGE_SIZE"
        )
    except (ImportError, OSError):
        return  # no Linux: the time that the caller gives is the only limit
    most = mapped + MEMORY + 4 * size
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main(source: str, side: str, wanted: str) -> int:
    """Print the findings as JSON, or {"error": ...}."""
    sys.addaudithook(_refuse)
    gc.disable()  # it would look through what a file builds again and again
    status = 1
    try:
        _limit_memory(os.stat(source).st_size)
        told = json.dumps(extract(Path(source), Path(side), wanted))
        status = 0
    except Unreadable as error:
        told = json.dumps({"error": str(error)})
    except MemoryError:
        told = json.dumps({"error": "it takes more memory than 1 GiB and four times the file's size"})
    except Exception as error:  # a damaged or hostile file may raise anything
        reason = f"{type(error).__name__}: {str(error)[:LONGEST_NAMED]}"
        told = json.dumps({"error": f"it is damaged, or no file of torch.save or pickle ({reason})"})
    sys.stdout.write(told)
    sys.stdout.flush()
    os._exit(status)  # taking apart what a hostile file had built may overflow the stack
