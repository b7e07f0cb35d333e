"""Image folders as tasks: PATH/train/<class>/*, PATH/test/<class>/*, perhaps PATH/val/<class>/*."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neulig_ray.errors import InputError
from neulig_ray.tasks import _splits
from neulig_ray.tasks._open import opened
from neulig_ray.tasks._pictures import Pictures, printable

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
TEST_SHARE = 0.2
LAYOUT = "PATH/train/<class>/*.png and PATH/test/<class>/*.png (and PATH/val/...), or PATH/<class>/*.png"


@dataclass(frozen=True)
class FolderReader:
    """Reads a folder of images. Without train and test folders, a fifth of each class becomes test.

    A class is a folder, its label the folder's place among the sorted names. Files that are no images by
    their suffix are passed over.
    """

    task: str
    path: Path

    def __call__(self, root: Path, download: bool) -> dict[str, Pictures]:
        if not self.path.is_dir():
            raise InputError(f"task {self.task!r}: there is no folder {str(self.path)!r}. It holds {LAYOUT}")
        splits = {s: self.path / s for s in ("train", "val", "test") if (self.path / s).is_dir()}
        if {"train", "test"} <= splits.keys():
            return {split: self._pictures(folder) for split, folder in splits.items()}
        if splits:
            raise InputError(
                f"task {self.task!r}: {str(self.path)!r} has {' and '.join(splits)} but not both train and "
                f"test. It holds {LAYOUT}"
            )
        whole = self._pictures(self.path)
        test = max(1, round(TEST_SHARE * len(whole)))
        rows = _splits.stratified(self.task, 0, whole.labels, {"test": test, "train": len(whole) - test})
        return {name: whole.take(np.sort(rows[name])) for name in ("train", "test")}

    def class_names(self) -> tuple[str, ...]:
        """The class folders' names, sorted: those of train where there is a train folder."""
        names = self(self.path, False)["train"].class_names
        assert names is not None
        return names

    def digest(self) -> str:
        """The sha256 of all images and their places below the folder: what the fingerprint is made of."""
        files = [file for part in _images(self.path).values() for file in part]
        with ThreadPoolExecutor() as pool:
            hashes = pool.map(lambda file: hashlib.sha256(file.read_bytes()).hexdigest(), files)
            lines = [f"{f.relative_to(self.path).as_posix()} {h}" for f, h in zip(files, hashes, strict=True)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _pictures(self, folder: Path) -> Pictures:
        classes = _images(folder)
        if not classes:
            raise InputError(
                f"task {self.task!r}: {str(folder)!r} has no class folders. The task's folder holds {LAYOUT}"
            )
        if empty := [name for name, files in classes.items() if not files]:
            raise InputError(
                f"task {self.task!r}: the class folder {str(folder / empty[0])!r} has no image (by suffix: "
                f"{', '.join(sorted(SUFFIXES))})"
            )
        files = [file for part in classes.values() for file in part]
        labels = np.repeat(np.arange(len(classes)), [len(part) for part in classes.values()])

        return Pictures(labels, lambda i: opened(files[i]), lambda i: printable(files[i]), tuple(classes))


def _images(folder: Path) -> dict[str, list[Path]]:
    """Folder name -> its images at any depth, both sorted."""
    return {
        part.name: sorted(f for f in part.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
        for part in sorted(folder.iterdir())
        if part.is_dir() and not part.name.startswith(".")
    }
