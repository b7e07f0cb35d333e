"""Tasks through Hugging Face `datasets`: by repository and columns, or from a copy of it placed by hand."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from neulig_ray import paths
from neulig_ray.errors import InputError, unknown
from neulig_ray.tasks._base import Files, Task
from neulig_ray.tasks._names import Names
from neulig_ray.tasks.reading.files import file_task, names_of, register
from neulig_ray.tasks.reading.labels import is_missing, labelled, numbers, texts
from neulig_ray.tasks.reading.opening import BadImage, opened
from neulig_ray.tasks.reading.pictures import Labels, Pictures

if TYPE_CHECKING:
    from PIL.Image import Image

_DOUBTFUL: Final = frozenset(("none", "null", "n/a", "na", "unknown", "unlabeled", "unlabelled"))


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
    parquet: str = ""
    """Where its repository keeps a split, {} standing for its name: only such files are fetched; "": all."""
    num_images: Mapping[str, int] = field(default_factory=dict)
    """Images of each of our splits, which a download must have."""

    def __call__(self, root: Path, download: bool) -> dict[str, Pictures]:
        # Whether to download is the library's to know: what it has in its cache it does not fetch again.
        tables = self.tables(root)
        names = self.class_names(tables)
        return {ours: self._pictures(tables, ours, names) for ours in self.splits}

    def tables(self, root: Path) -> Mapping[str, Any]:
        """The library's data set for each split that is asked for, with its two columns checked."""
        tables = self._load(root)
        self._check_complete(root, tables)
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
        placed, cache = root / self.task, root / "huggingface"
        source = str(placed) if placed.is_dir() else self.dataset
        try:
            with _quiet():
                if placed.is_dir() or self.parquet:
                    folder = str(placed) if placed.is_dir() else self._download(cache)
                    return datasets.load_dataset(folder, cache_dir=str(cache))
                return datasets.load_dataset(
                    self.dataset, name=self.config, revision=self.revision, cache_dir=str(cache)
                )
        except Exception as error:
            away = " (HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set)" if paths.offline() else ""
            pinned = f", revision {self.revision}" if self.revision else ""
            files = ", ".join((self.parquet or "{}-*.parquet").format(s) for s in self.splits.values())
            raise InputError(
                f"task {self.task!r}: the data set {source!r} cannot be had{away}: "
                f"{type(error).__name__}: {str(error).rstrip('.')}. By hand: place the parquet files of its "
                f"repository {self.dataset!r}{pinned} ({files}) in {placed} (another root: NEULIG_DATA); if "
                "they are there, they are damaged or incomplete. HF_ENDPOINT names another hub"
            ) from error

    def _download(self, cache: Path) -> str:
        """A folder with the parquet files of the splits that are read.

        The repositories of FusionBench's author hold seven corrupted copies of each test image as splits of
        their own, which the library's own loading would fetch too.
        """
        from huggingface_hub import snapshot_download

        return snapshot_download(
            self.dataset,
            repo_type="dataset",
            revision=self.revision,
            allow_patterns=[self.parquet.format(theirs) for theirs in self.splits.values()],
            cache_dir=cache / "hub",
        )

    def _check_complete(self, root: Path, tables: Mapping[str, Any]) -> None:
        """Raises InputError for a download that stopped half-way, which is read without complaint offline."""
        if (root / self.task).is_dir():
            return
        for ours, wanted in self.num_images.items():
            theirs = self.splits[ours]
            if theirs in tables and len(tables[theirs]) != wanted:
                raise InputError(
                    f"task {self.task!r}: of {self.dataset!r}, split {theirs!r} has {len(tables[theirs])} "
                    f"images instead of {wanted}: its download is incomplete. Fetch it again, with a "
                    f"network (HF_HUB_OFFLINE unset); if that does not help, remove {root}/huggingface first"
                )

    def class_names(self, tables: Mapping[str, Any]) -> tuple[str, ...] | None:
        """What the label column calls its labels: a class label's names, or the texts of all splits read."""
        features = [tables[theirs].features[self.label] for theirs in self.splits.values()]
        if hasattr(features[0], "names"):
            return tuple(features[0].names)
        if not any(getattr(feature, "dtype", "") in ("string", "large_string") for feature in features):
            return None
        return texts(cell for theirs in self.splits.values() for cell in tables[theirs].unique(self.label))

    def _pictures(self, tables: Mapping[str, Any], ours: str, names: tuple[str, ...] | None) -> Pictures:
        import datasets

        theirs = self.splits[ours]
        table = tables[theirs]
        try:
            encoded = table.cast_column(self.image, datasets.Image(decode=False))
            labels = self._labels(table, names)
        except Exception as error:
            raise InputError(
                f"task {self.task!r}: of {self.dataset!r}, split {theirs!r}, the column {self.image!r} holds "
                f"no images, or {self.label!r} no labels: {type(error).__name__}: {error}"
            ) from error

        def read(i: int) -> "Image":
            cell = encoded[i][self.image] or {}
            if cell.get("bytes") is not None:
                return opened(cell["bytes"])
            if cell.get("path"):
                return opened(Path(cell["path"]))
            raise BadImage("there is no image in this row: it is null")

        own = getattr(table.features[self.label], "names", names)
        notes = tuple(
            f"{name!r} is one of the classes: where it stands for no label, take its rows out"
            for name in names or ()
            if name.strip().lower() in _DOUBTFUL
        )
        described = f"{self.dataset} {theirs}"
        found = Pictures(
            labels, read, lambda i: f"row {i} of {described}", None if own is None else tuple(own), notes
        )
        return labelled(found, self.task, theirs, self._remedy(tables, ours))

    def _labels(self, table: Any, names: tuple[str, ...] | None) -> Labels:
        return numbers(list(table.select_columns(self.label)[:][self.label]), names or ())

    def _remedy(self, tables: Mapping[str, Any], ours: str) -> str:
        """What helps against rows without labels: another split, where the whole of this one has none."""
        if self.num_images:
            return "Fetch or place the data set again"
        unused = [name for name in tables if name not in self.splits.values()]
        others = [
            name
            for name in sorted(unused, key=lambda name: (not name.lower().startswith(("val", "dev")), name))
            if self.label in tables[name].column_names
            and not all(map(is_missing, tables[name].unique(self.label)))
        ]
        read = f"Read another split, such as {ours}={others[0]}, or take" if others else "Take"
        return (
            f"{read} the rows without a label out of the data. Its splits: {', '.join(tables)} (benchmarks "
            "often keep the labels of test to themselves)"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' progress bars, which would be one for each split and each file."""
    import datasets
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    were_on = datasets.is_progress_bar_enabled(), not are_progress_bars_disabled()
    datasets.disable_progress_bars()
    disable_progress_bars()
    try:
        yield
    finally:
        if were_on[0]:
            datasets.enable_progress_bars()
        if were_on[1]:
            enable_progress_bars()


def hub_task(
    name: str,
    dataset: str,
    *,
    revision: str,
    templates: tuple[str, ...],
    source: str,
    image: str = "image",
    label: str = "label",
    splits: Mapping[str, str] | None = None,
    class_names: Names | tuple[str, ...] | None = None,
    native: tuple[int, int] | None = None,
    num_images: Mapping[str, int],
    download_mb: int | None = None,
    paper: bool = False,
    version: int = 1,
) -> Task:
    """Declare the task `name` as a data set of the hub; `splits`: ours -> its own (default train and test).

    `revision`: the commit that is read, of which data/<split>-*.parquet are fetched. `class_names`: those of
    names/<name>.txt if not given. The rest as in `Files`.
    """
    reader = HubReader(
        task=name,
        dataset=dataset,
        splits=splits or {"train": "train", "test": "test"},
        image=image,
        label=label,
        revision=revision,
        parquet="data/{}-*.parquet",
        num_images=num_images,
    )
    files = Files(
        read=reader,
        names=names_of(name, class_names),
        native=native,
        num_images=num_images,
        download_mb=download_mb,
        identity=lambda: {"revision": revision},
    )
    made = file_task(name, files, templates=templates, source=source, paper=paper, version=version)
    return register(made, sys._getframe(1).f_globals["__name__"])
