"""Tasks that an experiment's list spells out: an image folder, a data set of the hub.

    folder:PATH[?template=TEXT]
    hub:DATASET?image=COLUMN&label=COLUMN[&config=..][&revision=..][&train=..][&val=..][&test=..][&template=..]

NAME= in front gives such a task its name in tables and file names; without it the name comes from the path or
the data set. `template` may be repeated; it holds one {} for the class name.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from neulig_ray import paths
from neulig_ray.errors import InputError, unknown
from neulig_ray.tasks._base import TASKS, Files, Task
from neulig_ray.tasks._names import Names
from neulig_ray.tasks.reading.files import file_task
from neulig_ray.tasks.reading.folders import FolderReader
from neulig_ray.tasks.reading.hub import HubReader
from neulig_ray.tasks.reading.pictures import printable

_ENTRY = re.compile(r"(?:(?P<name>[^=:/?]+)=)?(?P<kind>folder|hub):(?P<place>[^?]*)(?:\?(?P<query>.*))?")
_TEMPLATES = ("a photo of a {}.",)


def find_task(entry: str) -> Task:
    """The task that an entry of an experiment's `tasks` means: a registered name, a folder, a hub data set.

    Raises InputError for an unknown name, a folder or data set that cannot be read, and a name already taken.
    """
    if ":" not in entry:
        return TASKS[entry]
    found = _ENTRY.fullmatch(entry)
    if found is None or not found["place"]:
        raise InputError(
            f"task {entry!r}: write [NAME=]folder:PATH or [NAME=]hub:DATASET?image=COLUMN&label=COLUMN"
        )
    options = parse_qs(found["query"] or "", keep_blank_values=True)
    place = found["place"]
    name = found["name"] or _slug(Path(place).name if found["kind"] == "folder" else place)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise InputError(
            f"task {entry!r}: {name!r} cannot be a name (letters, digits, '_', '.', '-'). Put NAME= in front"
        )
    if name in TASKS:
        raise InputError(
            f"task {entry!r}: {name!r} is a task of its own already. Put NAME= in front, e.g. my-{entry}"
        )
    templates = tuple(options.pop("template", _TEMPLATES))
    for template in templates:
        if template.count("{}") != 1:
            raise InputError(f"task {entry!r}: template {template!r} must hold one {{}} for the class name")
    return _KINDS[found["kind"]](entry, name, place, options, templates)


def _folder(
    entry: str, name: str, place: str, options: Mapping[str, list[str]], templates: tuple[str, ...]
) -> Task:
    _refuse_others(entry, options, ())
    reader = FolderReader(name, Path(place).expanduser().resolve())
    names = _spoken(reader.class_names())
    files = Files(read=reader, names=names, at_hand=True, identity=lambda: {"content": reader.digest()})
    return file_task(name, files, templates=templates, source=f"folder {printable(reader.path)}")


def _hub(
    entry: str, name: str, place: str, options: Mapping[str, list[str]], templates: tuple[str, ...]
) -> Task:
    _refuse_others(entry, options, ("image", "label", "config", "revision", "train", "val", "test"))
    given: dict[str, Any] = {key: values[-1] for key, values in options.items()}
    splits = {s: given.pop(s, s) for s in ("train", "val", "test") if s != "val" or s in given}
    reader = HubReader(task=name, dataset=place, splits=splits, **given)
    tables = reader.tables(paths.data_root())
    train = tables[splits["train"]]
    labels = reader.class_names(tables)
    if labels is None:
        raise InputError(
            f"task {entry!r}: the label column {reader.label!r} carries no class names (it is "
            f"{train.features[reader.label]}), and the head is made of names: declare the task in a plugin "
            "file, with its class names"
        )
    files = Files(
        read=reader,
        names=_spoken(labels),
        at_hand=True,
        # The library's own fingerprint: of the files' hashes at the hub, or of local files' contents.
        identity=lambda: {
            "dataset": place,
            "options": given,
            "splits": splits,
            "content": [tables[split]._fingerprint for split in splits.values()],
        },
    )
    return file_task(name, files, templates=templates, source=f"hub {place}")


_KINDS = {"folder": _folder, "hub": _hub}


def _spoken(carried: tuple[str, ...]) -> Names:
    return Names(tuple(name.replace("_", " ") for name in carried), carried)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")


def _refuse_others(entry: str, options: Mapping[str, list[str]], known: tuple[str, ...]) -> None:
    for option in options:
        if option not in known:
            raise unknown("option", option, (*known, "template"), f"It stands in the task {entry!r}.")
