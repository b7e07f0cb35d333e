"""Labelled images that are decoded one at a time: what the files of a data set are read as."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pictures:
    """One split: labels int64 (N,), and image i opened by `read(i)`, which raises what decoders raise.

    Labels below 0 are missing. `describe(i)` names image i for people. `class_names`: what the data itself
    calls its labels, in their order, or None where it carries no names. `notes`: what was left out, in words.
    """

    labels: Labels
    read: Callable[[int], "Image"]
    describe: Callable[[int], str]
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: npt.NDArray[np.int64]) -> "Pictures":
        """The images `rows`, in that order."""
        return replace(
            self,
            labels=self.labels[rows],
            read=lambda i: self.read(int(rows[i])),
            describe=lambda i: self.describe(int(rows[i])),
        )

    @classmethod
    def of_array(cls, images: np.ndarray, labels: Labels, what: str) -> "Pictures":
        """Images uint8 (N, H, W, 3) that are decoded already."""
        from PIL import Image

        return cls(labels, lambda i: Image.fromarray(images[i]), lambda i: f"{what} {i}")


def pooled(parts: Sequence[Pictures]) -> Pictures:
    """Several splits one after the other."""
    ends = np.cumsum([len(part) for part in parts])

    def find(i: int) -> tuple[Pictures, int]:
        place = int(np.searchsorted(ends, i, side="right"))
        return parts[place], i - (int(ends[place - 1]) if place else 0)

    def read(i: int) -> "Image":
        part, row = find(i)
        return part.read(row)

    def describe(i: int) -> str:
        part, row = find(i)
        return part.describe(row)

    return Pictures(
        np.concatenate([p.labels for p in parts]),
        read,
        describe,
        parts[0].class_names,
        tuple(note for part in parts for note in part.notes),
    )


def printable(path: Path | str) -> str:
    """A path for people and for JSON: bytes that are no UTF-8 as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
