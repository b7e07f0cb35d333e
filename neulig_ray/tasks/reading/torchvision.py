"""Tasks through torchvision's data sets: opened, and where that fails fetched, by the library itself."""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neulig_ray import paths
from neulig_ray.errors import InputError
from neulig_ray.tasks._base import Files, Task
from neulig_ray.tasks._names import Names
from neulig_ray.tasks.reading.files import file_task, names_of, register
from neulig_ray.tasks.reading.opening import opened
from neulig_ray.tasks.reading.pictures import Labels, Pictures, printable

if TYPE_CHECKING:
    from PIL.Image import Image

TRAIN_FLAG: Mapping[str, Mapping[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
TRAIN_TEST: Mapping[str, Mapping[str, Any]] = {"train": {"split": "train"}, "test": {"split": "test"}}
TRAIN_VAL_TEST: Mapping[str, Mapping[str, Any]] = {s: {"split": s} for s in ("train", "val", "test")}


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Opens torchvision.datasets.<dataset> for each official split."""

    task: str
    dataset: str
    splits: Mapping[str, Mapping[str, Any]]
    place: str
    labels: Callable[[Any], Any]
    carried: Callable[[Any], Any]
    turn: Callable[["Image"], "Image"] | None
    downloads: bool

    def __call__(self, root: Path, download: bool) -> dict[str, Pictures]:
        return {split: self._open(root, split, keywords, download) for split, keywords in self.splits.items()}

    def _open(self, root: Path, split: str, keywords: Mapping[str, Any], download: bool) -> Pictures:
        from torchvision import datasets

        make = getattr(datasets, self.dataset)
        try:
            return self._pictures(make(root, **keywords), split)
        except Exception as error:
            if not (download and self.downloads) or paths.offline():
                raise self._error(root, split, error, None) from error
            cause = error
        try:
            return self._pictures(make(root, download=True, **keywords), split)
        except Exception as error:
            raise self._error(root, split, cause, error) from error

    def _pictures(self, dataset: Any, split: str) -> Pictures:
        carried = self.carried(dataset)
        files = _files(dataset)
        turn = self.turn or (lambda image: image)

        def read(i: int) -> "Image":
            # The library would open any format that a file may be of, and convert it with what that loses.
            return opened(files[i]) if files else turn(dataset[i][0])

        return Pictures(
            np.asarray(self.labels(dataset), np.int64),
            read,
            lambda i: printable(files[i]) if files else f"{split} image {i}",
            None if carried is None else tuple(map(str, carried)),
        )

    def _error(self, root: Path, split: str, error: Exception, fetching: Exception | None) -> InputError:
        told = f"task {self.task!r}: its {split} split cannot be read below {root} ({_words(error)})"
        if fetching is not None:
            url, file = _request(fetching)
            what = f"{url} to {file}" if url else f"torchvision's {self.dataset}"
            told += f". Downloading {what} failed ({_words(fetching)})"
        elif not self.downloads:
            told += ". torchvision does not download it"
        elif paths.offline():
            told += ". It was not downloaded, because HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set"
        return InputError(
            f"{told}. By hand: place {self.place} below {root} (another root: NEULIG_DATA); if they are "
            "there, they are damaged or incomplete: remove them and fetch them again"
        )


def torchvision_task(
    name: str,
    dataset: str,
    splits: Mapping[str, Mapping[str, Any]],
    *,
    templates: tuple[str, ...],
    source: str,
    place: str,
    class_names: Names | tuple[str, ...] | None = None,
    native: tuple[int, int] | None = None,
    num_images: Mapping[str, int],
    download_mb: int | None = None,
    paper: bool = False,
    held_out: int | None = None,
    most_shared: float = 0.01,
    labels: Callable[[Any], Any] | None = None,
    carried: Callable[[Any], Any] | None = None,
    turn: Callable[["Image"], "Image"] | None = None,
    downloads: bool = True,
    version: int = 1,
) -> Task:
    """Declare the task `name` as torchvision.datasets.<dataset>; `splits`: its keywords for each split.

    `place`: the files that make it complete below the data root. `class_names`: those of names/<name>.txt if
    not given. `labels(dataset)`, `carried(dataset)`: its labels and the names its files give them, where
    these are not the usual attributes. `turn`: what puts an image upright. The rest as in `Files`.
    """
    reader = _Reader(
        task=name,
        dataset=dataset,
        splits=splits,
        place=place,
        labels=labels or _labels,
        carried=carried or (lambda made: getattr(made, "classes", None)),
        turn=turn,
        downloads=downloads,
    )
    files = Files(
        read=reader,
        names=names_of(name, class_names),
        native=native,
        held_out=held_out,
        num_images=num_images,
        download_mb=download_mb,
        most_shared=most_shared,
    )
    made = file_task(name, files, templates=templates, source=source, paper=paper, version=version)
    return register(made, sys._getframe(1).f_globals["__name__"])


def _labels(dataset: Any) -> Labels:
    """The labels of all images without decoding any: torchvision has no one name for them."""
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(dataset, attribute):
            return np.asarray(getattr(dataset, attribute), np.int64)
    return np.array([label for _, label in dataset._samples], np.int64)


def _files(dataset: Any) -> list[Path]:
    """The files of a data set's images, in their order; none where they are not a file each."""
    for attribute in ("_image_files", "_images", "_samples"):
        items = [item[0] if isinstance(item, tuple) else item for item in getattr(dataset, attribute, ())]
        if items and isinstance(items[0], str | Path):
            return [Path(item) for item in items]
    return []


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip() or 'no further word'}"


def _request(error: BaseException) -> tuple[str, str]:
    """The URL and the file that torchvision was after, read from the frames of its download functions."""
    url, file = "", ""
    for frame in _frames(error):
        if frame.f_globals.get("__name__", "").startswith("torchvision.datasets"):
            url = str(frame.f_locals.get("url") or url)
            file = str(frame.f_locals.get("fpath") or frame.f_locals.get("filename") or file)
    return url, file


def _frames(error: BaseException | None) -> Iterator[Any]:
    """The frames of an error, outermost first, those of its causes last."""
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            yield trace.tb_frame
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
