"""Tasks through Hugging Face `datasets`: by repository and columns, or from a copy of it placed by hand."""

import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neulig_ray import paths
from neulig_ray.errors import InputError, unknown
from neulig_ray.tasks._base import Files, Task
from neulig_ray.tasks._files import file_task, names_of, register
from neulig_ray.tasks._names import Names
from neulig_ray.tasks._pictures import Labels, Pictures

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class HubReader:
    """Reads the splits of a data set by its columns. `splits`: our name of a split -> the data set's.

    A folder named after the task below the data root is read in place of the hub: a copy of the data set's
    repository, or its parquet files as <split>-*.parquet.
    """

    task: str
    dataset: str
    splits: Mapping[str, str]
    image: str = "image"
    label: str = "label"
    config: str | None = None
    revision: str | None = None

    def __call__(self, root: Path, download: bool) -> dict[str, Pictures]:
        # Whether to download is the library's to know: what it has in its cache it does not fetch again.
        tables = self.tables(root)
        return {ours: self._pictures(tables[theirs], theirs) for ours, theirs in self.splits.items()}

    def tables(self, root: Path) -> Mapping[str, Any]:
        """The library's data set for each split that is asked for, with its two columns checked."""
        tables = self._load(root)
        for theirs in self.splits.values():
            if theirs not in tables:
                raise unknown("split", theirs, tables, f"Task {self.task!r} reads it of {self.dataset!r}.")
            for column in (self.image, self.label):
                if column not in tables[theirs].column_names:
                    raise unknown(
                        "column",
                        column,
                        tables[theirs].column_names,
                        f"They are the columns of {self.dataset!r}, split {theirs!r}; task {self.task!r} "
                        "says which to read with image= and label=.",
                    )
        return tables

    def _load(self, root: Path) -> Mapping[str, Any]:
        try:
            import datasets
        except ImportError as error:
            raise InputError(
                f"task {self.task!r} is read by the package datasets, which is not installed: "
                "pip install 'neulig-ray[hf]'"
            ) from error
        placed = root / self.task
        source, keywords = (
            (str(placed), {})
            if placed.is_dir()
            else (self.dataset, {"name": self.config, "revision": self.revision})
        )
        try:
            with _quiet(datasets):
                return datasets.load_dataset(source, cache_dir=str(root / "huggingface"), **keywords)
        except Exception as error:
            away = " (HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set)" if paths.offline() else ""
            raise InputError(
                f"task {self.task!r}: the data set {source!r} cannot be had{away}: "
                f"{type(error).__name__}: {error}. By hand: place a copy of the repository {self.dataset!r} "
                f"(its parquet files, named <split>-*.parquet) in {placed} (another root: NEULIG_DATA); if "
                "it is there, it is damaged or incomplete. HF_ENDPOINT names another hub"
            ) from error

    def class_names(self, table: Any) -> tuple[str, ...] | None:
        """What a split's label column calls its labels: a class label's names, or the texts that occur."""
        feature = table.features[self.label]
        if hasattr(feature, "names"):
            return tuple(feature.names)
        if getattr(feature, "dtype", "") in ("string", "large_string"):
            return tuple(sorted(map(str, table.unique(self.label))))
        return None

    def _pictures(self, table: Any, split: str) -> Pictures:
        import datasets

        names = self.class_names(table)
        try:
            encoded = table.cast_column(self.image, datasets.Image(decode=False))
            labels = _labels(table, self.label, names)
        except Exception as error:
            raise InputError(
                f"task {self.task!r}: of {self.dataset!r}, split {split!r}, the column {self.image!r} holds "
                f"no images, or {self.label!r} no labels: {type(error).__name__}: {error}"
            ) from error

        def read(i: int) -> "Image":
            from PIL import Image

            cell = encoded[i][self.image]
            return Image.open(io.BytesIO(cell["bytes"]) if cell["bytes"] is not None else cell["path"])

        return Pictures(labels, read, lambda i: f"row {i} of {self.dataset} {split}", names)


def _labels(table: Any, column: str, names: tuple[str, ...] | None) -> Labels:
    cells = table.select_columns(column).with_format("numpy")[:][column]
    if cells.dtype.kind in "iu":
        return np.asarray(cells, np.int64)
    place = {name: label for label, name in enumerate(names or ())}
    return np.array([place[str(cell)] for cell in cells], np.int64)


class _quiet:
    """Without the library's progress bars, which would be one for each split and each file."""

    def __init__(self, datasets: Any) -> None:
        self._datasets = datasets

    def __enter__(self) -> None:
        self._were_on = self._datasets.is_progress_bar_enabled()
        self._datasets.disable_progress_bars()

    def __exit__(self, *_: object) -> None:
        if self._were_on:
            self._datasets.enable_progress_bars()


def hub_task(
    name: str,
    dataset: str,
    *,
    templates: tuple[str, ...],
    source: str,
    image: str = "image",
    label: str = "label",
    splits: Mapping[str, str] | None = None,
    class_names: Names | tuple[str, ...] | None = None,
    native: tuple[int, int] | None = None,
    num_images: Mapping[str, int],
    paper: bool = False,
    version: int = 1,
) -> Task:
    """Declare the task `name` as a data set of the hub; `splits`: ours -> its own (default train and test).

    `class_names`: those of names/<name>.txt if not given. The rest as in `Files`.
    """
    reader = HubReader(
        task=name,
        dataset=dataset,
        splits=splits or {"train": "train", "test": "test"},
        image=image,
        label=label,
    )
    files = Files(read=reader, names=names_of(name, class_names), native=native, num_images=num_images)
    made = file_task(name, files, templates=templates, source=source, paper=paper, version=version)
    return register(made, sys._getframe(1).f_globals["__name__"])
