"""Class names as data: one text file a task in the folder `names`, a line for each label in their order.

A line is `name`, or `what the data calls it | what a prompt calls it`. Underscores stand for spaces.
"""

import unicodedata
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


def check_list(task: str, names: Names) -> None:
    """Raises InputError for a class list that no head can be made of, naming the classes.

    A head tells classes apart by their spoken names alone, and text towers by no more than their letters:
    names that are equal without case, underscores, white space and spellings of Unicode are one name.
    """
    if len(names.spoken) < 2:
        has = f"one class, {names.carried[0]!r}" if names.carried else "no classes"
        raise InputError(f"task {task!r} has {has}. It needs two or more: with one every model is right")
    met: dict[str, str] = {}
    for spoken, carried in zip(*names, strict=True):
        if spoken != spoken.strip() or not _evened(spoken):
            raise InputError(
                f"task {task!r}: the class name {carried!r} is blank, or begins or ends with white space or "
                "an underscore (which stands for a space): rename it, or take it out if it is no class"
            )
        if (other := met.setdefault(_evened(spoken), carried)) is not carried:
            raise InputError(
                f"task {task!r}: the classes {_shown(other, carried)} have one name in a prompt, where case, "
                "underscores and white space do not count: no head can tell them apart. Rename or join them"
            )


def check_names(task: str, names: Names, found: Sequence[str], where: str) -> None:
    """Raises InputError when the data's own class names are others, or in another order, than the task's.

    The zero-shot head is written in the order of the task's list, so that a head and labels in different
    orders would give accuracies near chance without any other sign.
    """
    plain = _plain
    if len({_plain(name) for name in names.carried}) < len(names.carried):
        plain = _evened  # signs are all that tells C from C#
    if len(found) != len(names.spoken):
        known = {plain(name) for name in (*names.carried, *names.spoken)}
        theirs = {plain(name) for name in found}
        more = [name for name in found if plain(name) not in known]
        less = [c for s, c in zip(*names, strict=True) if not {plain(s), plain(c)} & theirs]
        told = "".join(
            f"; {what}: {', '.join(map(repr, some[:5]))}"
            for what, some in (("only in the data", more), ("missing there", less))
            if some
        )
        raise InputError(
            f"task {task!r}: {where} has {len(found)} classes, but the task's class list, and so its head, "
            f"has {len(names.spoken)}{told}. It is another data set, or a part of it: place the whole one"
        )
    for label, name in enumerate(found):
        if plain(name) not in {plain(names.spoken[label]), plain(names.carried[label])}:
            elsewhere = [i for i, n in enumerate(names.carried) if plain(n) == plain(name)]
            order = f" (the list has it at {elsewhere[0]}: the order differs)" if elsewhere else ""
            ours = names.carried[label]
            letters = "" if (name + ours).isascii() else f"; letter by letter {name!a} and {ours!a}"
            raise InputError(
                f"task {task!r}: {where} calls class {label} {name!r}, but the task's class list, and so its "
                f"head, says {ours!r}{letters}{order}. Use the data set that the task means, or name "
                "this one as a task of its own (folder: or hub:)"
            )


def _shown(one: str, other: str) -> str:
    """Two names, letter by letter where they may look the same."""
    return f"{one!r} and {other!r}" if (one + other).isascii() else f"{one!a} and {other!a} ({other})"


def _evened(name: str) -> str:
    """Without what a text tower does not see: case, underscores, white space, invisible signs."""
    text = unicodedata.normalize("NFKC", name.replace("_", " ")).casefold()
    visible = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return " ".join(unicodedata.normalize("NFC", visible).split())


def _plain(name: str) -> str:
    """Without case, spaces and signs, which data sets write as they like."""
    return "".join(
        c for c in _evened(name) if unicodedata.category(c)[0] in "LNM"
    )  # letters, numbers, accents
