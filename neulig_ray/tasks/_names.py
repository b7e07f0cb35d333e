"""Class names as data: one text file a task in the folder `names`, a line for each label in their order.

A line is `name`, or `what the data calls it | what a prompt calls it`. Underscores stand for spaces.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from neulig_ray.errors import InputError

FOLDER = Path(__file__).parent / "names"


class Names(NamedTuple):
    """What prompts say, and what the data says; both in the order of the labels."""

    spoken: tuple[str, ...]
    carried: tuple[str, ...]


def read_names(task: str) -> Names:
    """The class names of a task that has a file of them."""
    lines = (FOLDER / f"{task}.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(" | ") for line in lines]
    return Names(tuple(pair[-1].replace("_", " ") for pair in pairs), tuple(pair[0] for pair in pairs))


def check_names(task: str, names: Names, found: Sequence[str], where: str) -> None:
    """Raises InputError when the data's own class names are others, or in another order, than the task's.

    The zero-shot head is written in the order of the task's list, so that a head and labels in different
    orders would give accuracies near chance without any other sign.
    """
    if len(found) != len(names.spoken):
        raise InputError(
            f"task {task!r}: {where} has {len(found)} classes, but the task's class list, and so its head, "
            f"has {len(names.spoken)}. It is another data set, or a part of it: place the whole one"
        )
    for label, name in enumerate(found):
        if _plain(name) not in {_plain(names.spoken[label]), _plain(names.carried[label])}:
            elsewhere = [i for i, n in enumerate(names.carried) if _plain(n) == _plain(name)]
            order = f" (the list has it at {elsewhere[0]}: the order differs)" if elsewhere else ""
            raise InputError(
                f"task {task!r}: {where} calls class {label} {name!r}, but the task's class list, and so its "
                f"head, says {names.carried[label]!r}{order}. Use the data set that the task means, or name "
                "this one as a task of its own (folder: or hub:)"
            )


def _plain(name: str) -> str:
    """Without case, spaces and signs, which data sets write as they like."""
    return re.sub(r"[\W_]", "", name.lower())
