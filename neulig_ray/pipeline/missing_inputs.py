"""What a run would have to download, or cannot have: looked for on this machine, never over the network."""

import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from huggingface_hub import try_to_load_from_cache

from neulig_ray.errors import InputError
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.formats import tags
from neulig_ray.paths import data_root
from neulig_ray.pipeline.plan import Plan
from neulig_ray.stages.origins import OriginDownload, clip_bytes
from neulig_ray.stages.tasks import TaskJob
from neulig_ray.storage.storage import Storage
from neulig_ray.tasks import find_task
from neulig_ray.tasks.reading.files import pictures
from neulig_ray.tasks.reading.hub import HubReader
from neulig_ray.weights.folders import WEIGHTS

_PACKAGES: Final = {"pcam": ("h5py", "h5py")}  # task -> the module that reads it, and what to install


@dataclass(frozen=True)
class MissingInput:
    """Something that is not here. `bytes` to download, None where nothing says how many.

    `by_hand`: the run cannot have it by itself.
    """

    what: str
    remedy: str
    bytes: int | None = None
    by_hand: bool = False


def absent(plan: Plan, storage: Storage) -> list[MissingInput]:
    """What the plan's missing artifacts are made from and is not on this machine."""
    found: list[MissingInput] = []
    for job in plan.all_tasks:
        if job.from_files and not storage.exists(job.artifact):
            found += _of_task(job)
    for origin in plan.all_origins:
        download = origin.job
        if (
            isinstance(download, OriginDownload)
            and not storage.exists(download.artifact)
            and not _cached(download)
        ):
            remedy = f"downloaded ({download.source.place}), or placed: --origins {origin.name}=/path/to/file"
            found.append(MissingInput(f"origin {origin.label}", remedy, clip_bytes(origin.arch)))
    for expert in plan.imported:
        if expert.path is None and not storage.exists(expert.artifact):
            flags = f"--arch {expert.arch} --task {expert.task} --origin {expert.origin}"
            remedy = f"neulig import SOURCE {flags} --storage {storage.shown}"
            found.append(MissingInput(f"expert {expert.artifact.label}", remedy, by_hand=True))
    return found


def at_hand(plan: Plan) -> Iterator[str]:
    """Lines on each task whose entry names its data: where it is, how much, and what is passed over."""
    for job in plan.all_tasks:
        task = find_task(job.entry)
        if task.files is not None and task.files.at_hand:
            splits = pictures(task, job.seed, job.protocol)
            counts = ", ".join(f"{name} {len(part)}" for name, part in splits.items())
            yield f"data of {task.name}: {task.source}, {len(task.class_names)} classes, images: {counts}"
            for note in dict.fromkeys(note for part in splits.values() for note in part.notes):
                yield f"data of {task.name}: {note}"


def _of_task(job: TaskJob) -> Iterator[MissingInput]:
    task = find_task(job.entry)
    assert task.files is not None
    if task.files.at_hand:
        return
    reader, root = task.files.read, data_root()
    what = f"data of {task.name}"
    if isinstance(reader, HubReader):
        if importlib.util.find_spec("datasets") is None:
            yield MissingInput(
                f"package datasets, for {task.name}", "pip install 'neulig-ray[hf]'", by_hand=True
            )
        cache, kept = root / "huggingface", reader.dataset.replace("/", "--")
        places = [
            root / task.name,
            cache / reader.dataset.replace("/", "___"),
            cache / f"hub/datasets--{kept}",
        ]
        remedy = f"downloaded from the hub ({reader.dataset}), or placed in {places[0]}"
    elif (first := re.match(r"[^/ ,]+", place := str(getattr(reader, "place", "")))) is None:
        try:  # a plugin's own reader: it alone knows
            reader(root, False)
        except InputError as error:
            yield MissingInput(what, str(error))
        return
    else:
        places = [root / first[0]]
        downloads = getattr(reader, "downloads", True)
        remedy = f"{'downloaded by torchvision, or' if downloads else 'to be'} placed: {place} below {root}"
    if task.name in _PACKAGES and importlib.util.find_spec(_PACKAGES[task.name][0]) is None:
        module, package = _PACKAGES[task.name]
        yield MissingInput(f"package {module}, for {task.name}", f"pip install {package}", by_hand=True)
    if not any(path.exists() for path in places):
        megabytes = task.files.download_mb
        size = None if megabytes is None else megabytes * 1_000_000
        yield MissingInput(what, remedy, size, by_hand=not getattr(reader, "downloads", True))


def _cached(download: OriginDownload) -> bool:
    """Whether the library that would download an origin has it already."""
    source = download.source
    if source.kind == "hub":
        return _in_hub_cache(source.place, [file for files in WEIGHTS.values() for file in files])
    entry = tags.check_tag(ARCHS[download.arch], source.place)
    repository, files = tags.on_hub(entry)
    return _in_hub_cache(repository, files) if repository else tags.from_url(entry).is_file()


def _in_hub_cache(repository: str, files: Sequence[str]) -> bool:
    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)
