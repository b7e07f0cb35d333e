"""How `pytest -n 2` shares the suite: files that share a run or a Ray session stay in one process."""

import functools
import re
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parent.parent.parent
SHARED = {  # what is made once in a process
    "session": r"\b(ray_session|smallest_storage|copied_storage)\b",
    "undisturbed": r"\bundisturbed\b",
}
ALONE = r"\bmark\.(slow|ray)\b"  # sessions of commands, of no use to another file


@functools.cache
def group_of(file: str) -> str:
    """The group of a test file, by the fixtures that it names; the file itself where it shares none."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return next((name for name, fixtures in SHARED.items() if re.search(fixtures, text)), file)


def longest_first(items: list[pytest.Item]) -> None:
    """Put what takes minutes before all else: fast files fill what is left of either process."""
    items.sort(key=lambda item: _rank(_file(item.nodeid)))


def _rank(file: str) -> int:
    if (group := group_of(file)) in SHARED:
        return list(SHARED).index(group)
    slow = re.search(ALONE, (ROOT / file).read_text(encoding="utf-8"))
    return len(SHARED) + (slow is None)


class SharedRuns(LoadScopeScheduling):
    """Hands out groups and files in the order of the tests."""

    def __init__(self, config: pytest.Config, log: object) -> None:
        super().__init__(config, log)  # type: ignore[arg-type]
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return group_of(_file(nodeid))


def _file(nodeid: str) -> str:
    return nodeid.split("::", 1)[0]
