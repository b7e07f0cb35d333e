"""Experts that were not made here: tower files, or towers already in the storage, instead of fine-tuning."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neulig_ray.cluster.cost import Cost, Sizes
from neulig_ray.cluster.run_context import RunContext
from neulig_ray.documents import bounded_json
from neulig_ray.errors import InputError
from neulig_ray.experiment.combinations import collaborator, origin_name, origins_of
from neulig_ray.experiment.config import Experiment
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.tower_files import read_tower
from neulig_ray.stages.experts import FILE, tower_size
from neulig_ray.storage.artifact import Artifact, fingerprint
from neulig_ray.storage.inventory import inventory
from neulig_ray.storage.storage import Storage
from neulig_ray.weights.metadata import HEADER_KEY
from neulig_ray.weights.tensor_file import TensorFile

_LABEL = re.compile(r"(?P<arch>[^./]+)\.(?P<task>[^@/]+)@(?P<origin>[^@/]+)")
_STORED = re.compile(rf"{_LABEL.pattern}-(?P<fingerprint>[0-9a-f]{{16}})")
_NONE = "0" * 16  # the fingerprint of an expert that is named without one and is not in the storage


@dataclass(frozen=True)
class ImportedExpert:
    """An expert by its content; `path` is None where the storage is to have it already.

    `source`: where it was imported from, as far as its file tells.
    """

    arch: str
    task: str
    origin: str
    artifact: Artifact
    path: Path | None = None
    source: str = ""
    inputs: tuple[Artifact, ...] = ()

    @property
    def key(self) -> str:
        return collaborator(self.task, self.origin)

    def cost(self, sizes: Sizes) -> Cost:
        return Cost(bytes=tower_size(self.arch))

    def prepare(self, context: RunContext) -> None:
        """Copy it into the storage, where every node reads it; raises what `store_expert` raises."""
        store_expert(self, context.storage)


def imported_artifact(arch: str, task: str, origin: str, sha256: str) -> Artifact:
    """The artifact of an expert whose tower file has this sha256."""
    identity = fingerprint({"kind": "expert", "imported": sha256})
    return Artifact("expert", f"{arch}.{collaborator(task, origin)}", identity)


def stored_name(artifact: Artifact) -> str:
    """How an experiment's field `experts` names an imported expert that is in the storage."""
    if artifact.fingerprint == _NONE:
        return artifact.label
    return f"{artifact.label}-{artifact.fingerprint}"


def describe_expert(given: str) -> ImportedExpert:
    """An entry of the field `experts`: a tower file, or the name of one in the storage.

    Raises InputError for what is neither, and for a file that does not say its arch, task and origin.
    """
    stored = _STORED.fullmatch(given)
    if stored and not Path(given).exists():
        found = Artifact("expert", given.rpartition("-")[0], stored["fingerprint"])
        return ImportedExpert(stored["arch"], stored["task"], stored["origin"], found)
    if (label := _LABEL.fullmatch(given)) and not Path(given).exists():
        return ImportedExpert(label["arch"], label["task"], label["origin"], Artifact("expert", given, _NONE))
    path = Path(given).expanduser()
    if not path.is_file():
        raise InputError(
            f"experts {given!r}: there is no such file. Name tower files of `neulig import --out`, or what "
            "`neulig import --storage` printed (ARCH.TASK@ORIGIN-FINGERPRINT; without the fingerprint where "
            "the storage has one alone)"
        )
    metadata = _metadata(path)
    if lacking := [name for name in ("arch", "task", "origin") if not metadata.get(name)]:
        raise InputError(
            f"experts {given!r}: the file does not say its {' and '.join(lacking)}: "
            "make it with `neulig import`, which writes them"
        )
    arch, task, origin = metadata["arch"], metadata["task"], metadata["origin"]
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    artifact = imported_artifact(arch, task, origin, digest)
    return ImportedExpert(arch, task, origin, artifact, path, str(metadata.get("source") or ""))


def _metadata(path: Path) -> Mapping[str, Any]:
    text = TensorFile(path).metadata.get(HEADER_KEY, "{}")
    try:
        found = bounded_json(text, str(path))
    except InputError:
        found = {}
    return found if isinstance(found, dict) else {}


def plan_imported(experiment: Experiment) -> dict[tuple[str, str], ImportedExpert]:
    """(arch, key) -> the experts that take the place of fine-tuning.

    Those of archs and tasks that the experiment leaves out are left out too. Raises InputError for an origin
    that it does not name, for two experts of one place, and where none is used.
    """
    e = experiment
    found: dict[tuple[str, str], ImportedExpert] = {}
    for given in e.experts:
        expert = describe_expert(given)
        if expert.arch not in e.archs or expert.task not in e.tasks:
            continue
        named = [origin_name(given) for given in origins_of(e, expert.arch)]
        if expert.origin not in named:
            raise InputError(
                f"experts {given!r}: it starts from the origin {expert.origin!r}, and the origins are "
                f"{', '.join(named)}: add it to --origins (NAME=PATH gives an origin that name)"
            )
        if (expert.arch, expert.key) in found:
            raise InputError(f"experts name two of {expert.arch} {expert.key}: leave one out")
        found[expert.arch, expert.key] = expert
    if e.experts and not found:
        raise InputError(
            f"none of the {len(e.experts)} experts is of the archs ({', '.join(e.archs)}) and tasks "
            f"({', '.join(e.tasks)}) of the experiment: name those that they are of"
        )
    return found


def with_stored(experiment: Experiment, storage: Storage, family: Callable[[str], bool]) -> Experiment:
    """The experiment with ARCH.TASK@ORIGIN among its experts completed by the fingerprint in the storage.

    Where several imported experts have the name, `family` of their source chooses. What the storage lacks
    stays as it is. Raises InputError where several are left.
    """
    short = {given for given in experiment.experts if _is_short(given)}
    if not short:
        return experiment
    stored: dict[str, dict[str, str]] = {}  # name -> {name with fingerprint: source}
    for item in inventory(storage):
        label = item.name.rpartition("-")[0]
        if item.kind == "expert" and item.whole and label in short:
            about = storage.manifest_at(item.path)["info"]
            if "source_layout" in about:  # imported, not fine-tuned here
                stored.setdefault(label, {})[item.name] = str(about.get("source") or "")
    return dataclasses.replace(
        experiment,
        experts=tuple(
            _chosen(given, stored[given], family) if given in stored else given
            for given in experiment.experts
        ),
    )


def _is_short(given: str) -> bool:
    return bool(_LABEL.fullmatch(given)) and not _STORED.fullmatch(given) and not Path(given).exists()


def _chosen(given: str, found: Mapping[str, str], family: Callable[[str], bool]) -> str:
    names = [name for name, source in found.items() if family(source)] if len(found) > 1 else list(found)
    if len(names) != 1:
        listing = ", ".join(f"{name} (of {source or 'an unknown source'})" for name, source in found.items())
        raise InputError(f"experts {given!r} means several in the storage: name one of {listing}")
    return names[0]


def store_expert(expert: ImportedExpert, storage: Storage) -> None:
    """Copy an imported expert into the storage, after checking it; every node reads it there.

    Raises InputError for a damaged file, one of another arch, and one that the storage is said to have.
    """
    if storage.exists(expert.artifact):
        return
    if expert.path is None:
        raise InputError(
            f"experts {stored_name(expert.artifact)!r} is not in {storage.uri}: `neulig import SOURCE --arch "
            f"{expert.arch} --task {expert.task} --origin {expert.origin} --storage ...` puts it there"
        )
    _commit(expert, expert.path.read_bytes(), storage)


def store_bytes(data: bytes, storage: Storage) -> Artifact:
    """Put a tower file with arch, task and origin into the storage; its artifact."""
    _, metadata = read_tower(data)
    arch, task, origin = metadata["arch"], metadata["task"], metadata["origin"]
    artifact = imported_artifact(arch, task, origin, hashlib.sha256(data).hexdigest())
    if not storage.exists(artifact):
        _commit(ImportedExpert(arch, task, origin, artifact), data, storage)
    return artifact


def _commit(expert: ImportedExpert, data: bytes, storage: Storage) -> None:
    label = str(expert.path or expert.artifact.label)
    _, metadata = read_tower(data, ARCHS[expert.arch], label=label)
    about = {name: metadata.get(name) for name in ("source", "source_sha256", "source_layout")}
    info: dict[str, Any] = {
        "arch": expert.arch,
        "task": expert.task,
        "origin": expert.origin,
        **about,
        "curve": [],
    }
    storage.commit(expert.artifact, {FILE: data}, info)
