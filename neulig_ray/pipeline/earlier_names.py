"""Stored artifacts of an experiment under names that another version of this package gave them."""

import dataclasses
import json
from typing import Any, Final

from neulig_ray.errors import InputError
from neulig_ray.experiment.config import Experiment
from neulig_ray.pipeline.plan import Plan
from neulig_ray.redaction import without_secrets
from neulig_ray.storage.inventory import artifacts_of, inventory
from neulig_ray.storage.layout import ABOUT
from neulig_ray.storage.storage import Storage
from neulig_ray.version import code_version

_METHODS: Final = "methods"
_OF_METHODS: Final = ("evaluation", "model", "statistics")  # kinds of artifact that come and go with a method
_NAMELESS: Final = (_METHODS, "published", "cluster")  # fields that are in no other artifact's name


def earlier_names(plan: Plan, storage: Storage) -> str | None:
    """A line on the artifacts of the experiment's last results whose names do not occur in the plan any more.

    None where there are none, where those results have other settings, or where this very code made them.
    Reads the last results' provenance; only where names are gone the artifacts are listed, once.
    """
    name = plan.experiment.name
    artifacts = [artifact for found in plan.artifacts().values() for artifact in found]
    try:
        about = storage.read_json(f"{name}/{ABOUT}")
        gone = set(artifacts_of(about, name)) - {artifact.fingerprint for artifact in artifacts}
        before, version = about["configuration"], about["versions"]["neulig-ray"]
        history = storage.full(f"{name}/history/{about['fingerprint']}")
    except (FileNotFoundError, InputError, LookupError, TypeError):  # none, or others': written anew
        return None
    if not gone or not _same_settings(before, plan.experiment) or version == code_version():
        return None
    left_out = () if before.get(_METHODS) == list(plan.experiment.methods) else _OF_METHODS
    planned = {_place(artifact.path) for artifact in artifacts if artifact.kind not in left_out}
    count = sum(
        item.whole and item.fingerprint in gone and _place(item.path) in planned
        for item in inventory(storage)
    )
    if not count:
        return None
    commit = f", commit {str(about['git_commit'])[:12]}" if about.get("git_commit") else ""
    return (
        f"{count} artifacts of {name} have names of neulig-ray {version}{commit}, which this version gives "
        f"no more: they are made again. Go on with that version instead, or remove {history} when this has "
        f"ended and run `neulig storage prune --storage {storage.shown}`"
    )


def _place(path: str) -> str:
    """Kind and label of an artifact's path, without its fingerprint."""
    return path.rpartition("-")[0]


def _same_settings(before: Any, now: Experiment) -> bool:
    """Whether names may be compared: fields that came later are to have their defaults."""
    if not isinstance(before, dict):
        return False
    then = {**_fields(_recorded(Experiment(name=now.name))), **_fields(before)}
    return all(then.get(key) == value for key, value in _fields(_recorded(now)).items())


def _recorded(experiment: Experiment) -> dict[str, Any]:
    """The configuration as results.json has it."""
    found: dict[str, Any] = json.loads(json.dumps(without_secrets(dataclasses.asdict(experiment))))
    return found


def _fields(configuration: dict[str, Any]) -> dict[str, Any]:
    """Its fields, those of its parts as PART.FIELD, that decide artifacts' names."""
    found: dict[str, Any] = {}
    for key, value in configuration.items():
        if key not in _NAMELESS:
            parts = value.items() if isinstance(value, dict) else [("", value)]
            found |= {f"{key}.{part}": inner for part, inner in parts}
    return found
