"""Merged models as files: safetensors that other tools read, and a model.json that says what each serves."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from neulig_ray.documents import bounded_json
from neulig_ray.errors import InputError
from neulig_ray.evaluation.method_models import ChosenModels, MethodModels
from neulig_ray.ligand.data import Combination, task_of
from neulig_ray.merging.declare.method import METHODS, MergingMethod
from neulig_ray.merging.inputs import MergeInputs
from neulig_ray.merging.merged_models import MergedModels, Model
from neulig_ray.models.archs import ARCHS
from neulig_ray.models.clip import build_tower
from neulig_ray.models.tower_files import describe, pack, read_tower, tower_bytes, unpack
from neulig_ray.weights.sources import State

INDEX: Final = "model.json"
FORMAT: Final = 1


@dataclass(frozen=True)
class ModelOptions:
    """Whose models they are: of `method`, with the `options` that are not its defaults."""

    arch: str
    method: str
    options: Mapping[str, Any]
    combination: Combination

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(map(task_of, self.combination))


@dataclass(frozen=True)
class StoredModels:
    """What an artifact of kind `model` holds.

    `skipped`: why there are none, "" where there are. Not `kept`: modules that nothing rebuilds.
    """

    about: ModelOptions
    models: MethodModels
    skipped: str = ""
    kept: bool = True


class ServedModel(NamedTuple):
    """One model and what it serves: pairs of a rule for buffers and a task. `setting`: chosen on val.

    A `beta` (n,) alone stands for theta(beta) of the experts: reading it mixes them again, bit by bit, in one
    pass over them, where every task's model would take a tower of the storage.
    """

    model: Model | torch.Tensor
    serves: tuple[tuple[str, str], ...]
    granularity: str
    parameters: int
    setting: Mapping[str, Any] = MappingProxyType({})


def served_models(made: MethodModels) -> list[ServedModel]:
    """The distinct models of what a method made."""
    found: dict[tuple[int, str], ServedModel] = {}
    for buffers, by_task in made.by_buffers.items():
        for task, chosen in by_task.items():
            model, pair = chosen.models.by_task[task], (buffers, task)
            key = (id(model), str(sorted(chosen.setting.items())))
            serves = (*found[key].serves, pair) if key in found else (pair,)
            found[key] = ServedModel(
                model, serves, chosen.models.granularity, chosen.models.parameters, chosen.setting
            )
    return list(found.values())


def model_files(
    about: ModelOptions, served: Iterable[ServedModel], selected: Sequence[Mapping[str, Any]] = ()
) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files, one model at a time. `selected`: as in `MethodModels`.

    A state of the tower is written as experts are; a module's tensors under their own names. Raises
    ValueError for numbers that are not finite.
    """
    entries, written = [], 0
    for one in served:
        kept: dict[str, Any]
        if isinstance(one.model, torch.Tensor):
            kept = {"beta": one.model.tolist()}
        else:
            kept = {"file": f"model-{written}.safetensors"}
            written += 1
            yield kept["file"], _model_bytes(about, one.model, one.setting)
        entries += [
            {
                "buffers": buffers,
                "task": task,
                **kept,
                "granularity": one.granularity,
                "parameters": one.parameters,
                "options": dict(one.setting),
            }
            for buffers, task in one.serves
        ]
    yield INDEX, _index(about, served=entries, selected=list(selected))


def skipped_files(about: ModelOptions, reason: str) -> dict[str, bytes]:
    """The same of a method that is not defined for these models."""
    return {INDEX: _index(about, served=[], selected=[], skipped=reason)}


def unkept_files(about: ModelOptions) -> dict[str, bytes]:
    """The same of modules that the method does not rebuild: whoever needs them makes them."""
    return {INDEX: _index(about, served=[], selected=[], kept=False)}


def read_models(
    load: Callable[[str], bytes], where: str, mix: Callable[[torch.Tensor], State] | None = None
) -> StoredModels:
    """The models again, floats as float32: `load(name)` gives a file, `where` names the artifact in messages.

    `mix(beta)`: theta(beta) of the experts, in the combination's order, for models that are kept as betas.
    Raises InputError for a file that lacks entries, is damaged, or of another format or arch.
    """
    about, found = _read_index(load, where)
    read: dict[str, Model] = {}

    def model(entry: Mapping[str, Any]) -> Model:
        if "beta" in entry:
            if mix is None:
                raise InputError(f"{where} keeps mixtures of its experts as betas: give the experts")
            key = str(entry["beta"])
            return read[key] if key in read else read.setdefault(key, mix(torch.tensor(entry["beta"])))
        name = entry["file"]
        if name not in read:
            read[name] = _read(load(name), about, entry["options"], f"{where}: {name}")
        return read[name]

    by_buffers: dict[str, dict[str, ChosenModels]] = {}
    with _misstated(where):
        for entry in found["served"]:
            merged = MergedModels({entry["task"]: model(entry)}, entry["granularity"], entry["parameters"])
            chosen = ChosenModels(merged, entry["options"])
            by_buffers.setdefault(entry["buffers"], {})[entry["task"]] = chosen
        return StoredModels(
            about, MethodModels(by_buffers, found["selected"]), found["skipped"], found["kept"]
        )


def read_betas(load: Callable[[str], bytes], where: str) -> dict[str, torch.Tensor]:
    """Task -> the beta (n,) float32 of its model, of models that are kept as such; raises InputError."""
    _, found = _read_index(load, where)
    with _misstated(where):
        return {entry["task"]: torch.tensor(entry["beta"]) for entry in found["served"]}


def _read_index(load: Callable[[str], bytes], where: str) -> tuple[ModelOptions, dict[str, Any]]:
    found = bounded_json(load(INDEX), f"{where}: {INDEX}")
    with _misstated(where):
        if found["format"] != FORMAT:
            raise InputError(
                f"{where} is of format {found['format']!r}; this version reads {FORMAT}: update neulig-ray"
            )
        return ModelOptions(
            found["arch"], found["method"], found["options"], tuple(found["combination"])
        ), found


@contextmanager
def _misstated(where: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: {INDEX} lacks or misstates {error}: make it again") from error


def _index(about: ModelOptions, **more: Any) -> bytes:
    index = {
        "format": FORMAT,
        "arch": about.arch,
        "method": about.method,
        "options": dict(about.options),
        "combination": about.combination,
        "skipped": "",
        "kept": True,
        **more,
    }
    return json.dumps(index, indent=1).encode()


def _model_bytes(about: ModelOptions, model: Model, setting: Mapping[str, Any]) -> bytes:
    recorded = {
        "method": about.method,
        "options": json.loads(json.dumps({**about.options, **setting})),
        "collaborators": list(about.combination),
    }
    arch = ARCHS[about.arch]
    if not isinstance(model, nn.Module):
        on_cpu = {name: tensor.detach().cpu() for name, tensor in model.items()}
        return tower_bytes(on_cpu, describe(arch, "tower", **recorded))
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    return pack(tensors, describe(arch, "module", **recorded))


def _read(data: bytes, about: ModelOptions, setting: Mapping[str, Any], where: str) -> Model:
    arch = ARCHS[about.arch]
    tensors, metadata, _ = unpack(data, where)
    if metadata.get("kind") != "module":
        del tensors  # read_tower reads them once more
        return read_tower(data, arch, label=where)[0]
    method = METHODS[about.method]
    if not isinstance(method, MergingMethod):
        raise InputError(f"{where} holds a module of {about.method}, which makes none: make it again")
    module = rebuilt(method, about, setting)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{where}: not the module that {about.method} makes: {error}") from error
    return module.requires_grad_(False).eval()


def rebuilt(method: MergingMethod, about: ModelOptions, setting: Mapping[str, Any]) -> nn.Module:
    """A method's module again, whose tensors hold nothing yet; raises InputError where that cannot be had."""
    try:
        return method.rebuild(_empty_inputs(about), {**about.options, **setting})
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{about.method} does not make its module again without images: {type(error).__name__}: {error}"
        ) from error


def _empty_inputs(about: ModelOptions) -> MergeInputs:
    """Experts of which nothing but the architecture counts."""
    tower = build_tower(ARCHS[about.arch]).eval()
    state = tower.state_dict()
    experts = dict.fromkeys(about.combination, state)
    return MergeInputs(tower, experts, state, tasks=about.tasks)
