"""How `pytest -n 2` shares the suite: a file stays whole, and each process starts one kind of Ray session."""

import functools
import re
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parent.parent.parent
GROUPS = {
    "session": r"\b(ray_session|smallest_storage|copied_storage)\b",  # the suite's own
    "commands": r"\b(start_command|undisturbed)\b|mark\.slow",  # those of commands, one after another
}


@functools.cache
def group_of(file: str) -> str:
    """The group of a test file, by the fixtures that it names; the file itself where it needs no Ray."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return next((name for name, fixtures in GROUPS.items() if re.search(fixtures, text)), file)


def longest_first(items: list[pytest.Item]) -> None:
    """Put the groups before all else: the other files fill what is left of either process."""
    last = {name: place for place, name in enumerate(GROUPS)}
    items.sort(key=lambda item: last.get(group_of(_file(item.nodeid)), len(GROUPS)))


class TwoKinds(LoadScopeScheduling):
    """Hands out groups and files in the order of the tests."""

    def __init__(self, config: pytest.Config, log: object) -> None:
        super().__init__(config, log)  # type: ignore[arg-type]
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return group_of(_file(nodeid))


def _file(nodeid: str) -> str:
    return nodeid.split("::", 1)[0]
