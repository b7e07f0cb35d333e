"""A folder of class folders, as archivers, file servers and people leave it: its images, and the rest."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from neulig_ray.errors import InputError
from neulig_ray.tasks.reading.pictures import printable

SUFFIXES: Final = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))
# Folders that no one made a class: in lower case. Those with a leading dot are hidden anyway.
_LEFT: Final = frozenset(
    (
        "__macosx", "lost+found", "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot",
        "~snapshot", "$recycle.bin", "recycler", "system volume information", "found.000", "cvs", "_svn",
        "__pycache__", "network trash folder", "temporary items",
    )
)  # fmt: skip
_LEFT_FILES: Final = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))


@dataclass
class Tree:
    """The class folders of a folder. `classes`: name (NFC) -> its images at any depth; both sorted."""

    folder: Path
    classes: dict[str, list[Path]] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    hidden: list[Path] = field(default_factory=list)
    links: list[Path] = field(default_factory=list)
    outside: list[Path] = field(default_factory=list)
    suffixes: Counter[str] = field(default_factory=Counter)

    def notes(self) -> list[str]:
        """What was passed over, a line for each reason."""
        found = []
        if self.suffixes:
            kinds = ", ".join(f"{suffix or 'none'} {count}" for suffix, count in self.suffixes.most_common(5))
            found.append(
                f"files passed over for their suffix: {self.suffixes.total()} ({kinds}); read are "
                + " ".join(sorted(SUFFIXES))
            )
        if self.left:
            names = ", ".join(repr(printable(name)) for name in sorted(self.left))
            found.append(f"folders of archivers and file servers passed over: {names}")
        for what, paths in (
            ("hidden images", self.hidden),
            ("images outside the class folders", self.outside),
            ("links that lead nowhere, or to folders within or above,", self.links),
        ):
            if paths:
                first = printable(paths[0].relative_to(self.folder))
                found.append(f"{what} passed over: {len(paths)}, such as {first}")
        return found


def read_tree(task: str, folder: Path) -> Tree:
    """Look through the class folders of `folder`; nothing is opened.

    Raises InputError for a folder that cannot be read, for a name that is no text, and for two class folders
    that are one: by a link, or by a name that two spellings of Unicode differ in.
    """
    tree, places = Tree(folder), dict[Path, Path]()
    try:
        for part in sorted(folder.iterdir()):
            if not part.is_dir():
                _count_file(tree, part, inside=False)
            elif not part.name.startswith(".") and not _is_left(tree, part.name):
                real = part.resolve()
                if part.is_symlink() and folder.resolve().is_relative_to(real):
                    tree.links.append(part)
                    continue
                name = class_name(task, part)
                if name in tree.classes:
                    raise InputError(
                        f"task {task!r}: two class folders of {printable(folder)!r} are called {name!r}, "
                        f"with composed and with separate accents ({part.name!a} is one): join them"
                    )
                if real in places:
                    raise InputError(
                        f"task {task!r}: the class folders {printable(places[real])!r} and "
                        f"{printable(part)!r} are one folder, by a link: an image has one class. Remove one"
                    )
                places[real] = part
                tree.classes[name] = sorted(_images(tree, part))
    except OSError as error:
        raise InputError(f"task {task!r}: {printable(folder)!r} cannot be read: {error}") from error
    tree.classes = dict(sorted(tree.classes.items()))
    return tree


def class_name(task: str, folder: Path) -> str:
    """A folder's name with composed accents (NFC), as Linux and Windows write them and macOS does not."""
    try:
        return unicodedata.normalize("NFC", os.fsencode(folder.name).decode())
    except UnicodeDecodeError:
        raise InputError(
            f"task {task!r}: the name of the class folder {printable(folder)!r} is no UTF-8: rename it"
        ) from None


def _images(tree: Tree, part: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(part, onerror=_raise):
        kept = []
        for name in folders:
            path = Path(place, name)
            if path.is_symlink():
                tree.links.append(path)
            elif not name.startswith(".") and not _is_left(tree, name):
                kept.append(name)
        folders[:] = kept
        for name in files:
            path = Path(place, name)
            if _count_file(tree, path, inside=True):
                yield path


def _count_file(tree: Tree, path: Path, inside: bool) -> bool:
    """Whether a file is an image of a class; otherwise it is counted where that is worth a word."""
    suffix = path.suffix.lower()
    if path.name.startswith("."):
        if suffix in SUFFIXES:
            tree.hidden.append(path)
    elif suffix in SUFFIXES:
        if not path.is_file():
            tree.links.append(path)
        elif inside:
            return True
        else:
            tree.outside.append(path)
    elif inside and path.name.lower() not in _LEFT_FILES:
        tree.suffixes[suffix] += 1
    return False


def _is_left(tree: Tree, name: str) -> bool:
    if name.lower() not in _LEFT:
        return False
    tree.left.add(name)
    return True


def _raise(error: OSError) -> None:
    raise error
