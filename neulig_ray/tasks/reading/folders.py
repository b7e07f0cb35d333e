"""Image folders as tasks: PATH/train/<class>/*, PATH/test/<class>/*, perhaps PATH/val/<class>/*."""

import hashlib
import os
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from neulig_ray.errors import InputError
from neulig_ray.tasks.reading import splits
from neulig_ray.tasks.reading.opening import opened
from neulig_ray.tasks.reading.pictures import Pictures, printable
from neulig_ray.tasks.reading.tree import SUFFIXES, Tree, read_tree

TEST_SHARE = 0.2
LAYOUT = "PATH/train/<class>/*.png and PATH/test/<class>/*.png (and PATH/val/...), or PATH/<class>/*.png"
_SPLITS: Final = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True)
class FolderReader:
    """Reads a folder of images. Without train and test folders, a fifth of each class becomes test.

    A class is a folder, its label the folder's place among the sorted names. What is passed over, such as
    files that are no images by their suffix, stands in the notes.
    """

    task: str
    path: Path

    def __call__(self, root: Path, download: bool) -> dict[str, Pictures]:
        trees = self._trees()
        if "" not in trees:
            found = {split: self._pictures(tree, f"{split}: ") for split, tree in trees.items()}
            return found | {"train": replace(found["train"], notes=(*self._beside(), *found["train"].notes))}
        whole = self._pictures(trees[""], "")
        test = max(1, round(TEST_SHARE * len(whole)))
        counts = {"test": test, "train": len(whole) - test}
        rows = splits.stratified(self.task, 0, whole.labels, counts)
        rows = splits.with_every_class(rows, whole.labels, small="test", large="train")
        return {name: whole.take(np.sort(rows[name])) for name in ("train", "test")}

    def class_names(self) -> tuple[str, ...]:
        """The class folders' names, sorted: those of train where there is a train folder."""
        names = self(self.path, False)["train"].class_names
        assert names is not None
        return names

    def digest(self) -> str:
        """The sha256 of all images and their places below the folder: what the fingerprint is made of."""
        files = [file for tree in self._trees().values() for part in tree.classes.values() for file in part]
        with ThreadPoolExecutor() as pool:
            hashes = pool.map(_hash, files)
            lines = [self._line(file, found) for file, found in zip(files, hashes, strict=True)]
        return hashlib.sha256(b"\n".join(sorted(lines))).hexdigest()

    def _line(self, file: Path, found: str) -> bytes:
        place = unicodedata.normalize("NFC", file.relative_to(self.path).as_posix())
        return os.fsencode(f"{place} {found}")

    def _trees(self) -> dict[str, Tree]:
        """Split -> its class folders; "" -> those of the whole, which is not divided yet."""
        if not self.path.is_dir():
            raise InputError(f"task {self.task!r}: there is no folder {self._shown()}. It holds {LAYOUT}")
        folders = self._split_folders()
        if not folders:
            return {"": read_tree(self.task, self.path)}
        if not {"train", "test"} <= folders.keys():
            have = " and ".join(folder.name for folder in folders.values())
            rename = (
                " Where val is what results are reported on, rename it to test." if "val" in folders else ""
            )
            raise InputError(
                f"task {self.task!r}: {self._shown()} has {have} but not both train and test. It holds "
                f"{LAYOUT}; a class of such a name belongs into them.{rename}"
            )
        return {
            split: read_tree(self.task, folders[split])
            for split in ("train", "val", "test")
            if split in folders
        }

    def _split_folders(self) -> dict[str, Path]:
        try:
            parts = [part for part in sorted(self.path.iterdir()) if part.is_dir()]
        except OSError as error:
            raise InputError(f"task {self.task!r}: {self._shown()} cannot be read: {error}") from error
        folders: dict[str, Path] = {}
        for part in parts:
            split = _SPLITS.get(part.name.lower())
            if split in folders:
                raise InputError(
                    f"task {self.task!r}: {self._shown()} has {folders[split].name!r} and {part.name!r}, "
                    f"and both would be its {split} split: join them, or take one out"
                )
            if split is not None:
                folders[split] = part
        if folders.keys() == {"val"} and folders["val"].name.lower() == "valid":
            return {}  # a class, as where the others are "invalid"
        return folders

    def _beside(self) -> list[str]:
        """A line for the folders that are neither train nor val nor test."""
        others = [
            repr(printable(part.name))
            for part in sorted(self.path.iterdir())
            if part.is_dir() and part.name.lower() not in _SPLITS and not part.name.startswith(".")
        ]
        return [f"folders beside the splits passed over: {', '.join(others[:5])}"] if others else []

    def _pictures(self, tree: Tree, split: str) -> Pictures:
        notes = [f"{split}{note}" for note in tree.notes()]
        passed = f" ({'; '.join(tree.notes())})" if notes else ""
        if not tree.classes:
            raise InputError(
                f"task {self.task!r}: {printable(tree.folder)!r} has no class folders{passed}. The task's "
                f"folder holds {LAYOUT}"
            )
        if empty := [name for name, files in tree.classes.items() if not files]:
            raise InputError(
                f"task {self.task!r}: the class folder {printable(tree.folder / empty[0])!r} has no image "
                f"(by suffix: {', '.join(sorted(SUFFIXES))}){passed}. Remove it, or put images into it"
            )
        files = [file for part in tree.classes.values() for file in part]
        labels = np.repeat(np.arange(len(tree.classes)), [len(part) for part in tree.classes.values()])
        return Pictures(
            labels,
            lambda i: opened(files[i]),
            lambda i: printable(files[i]),
            tuple(tree.classes),
            tuple(notes),
        )

    def _shown(self) -> str:
        return repr(printable(self.path))


def _hash(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return "cannot be read"  # one of the images that cannot be used, when they are decoded
