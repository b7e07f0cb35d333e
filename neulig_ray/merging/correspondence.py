"""Whether models can be merged at all: the same names, shapes and kinds of tensors."""

import difflib
from collections.abc import Collection, Mapping

import torch

from neulig_ray.errors import InputError
from neulig_ray.tensorfile import Spec


def check_specs(specs: Mapping[str, Mapping[str, Spec]]) -> None:
    """Raises InputError unless all models have the same names, shapes and kinds (float or integer)."""
    if not specs:
        raise InputError("no model to merge: give at least one")
    if empty := [label for label, found in specs.items() if not found]:
        raise InputError(f"{empty[0]!r} holds no tensor: give a model's state dict")
    (first, reference), *others = specs.items()
    for label, found in others:
        _check_names(first, reference, label, found)
        for name, spec in reference.items():
            if spec.shape != found[name].shape:
                raise InputError(
                    f"{first!r} and {label!r} cannot be merged: {name!r} is {spec.shape} in the one "
                    f"and {found[name].shape} in the other; use models of one architecture"
                )
            if spec.dtype.is_floating_point != found[name].dtype.is_floating_point:
                raise InputError(
                    f"{first!r} and {label!r} cannot be merged: {name!r} is {spec.dtype} in the one and "
                    f"{found[name].dtype} in the other"
                )


def _check_names(first: str, reference: Collection[str], label: str, found: Collection[str]) -> None:
    odd = sorted({*reference} ^ {*found})
    if not odd:
        return
    pairs = ((first, reference, label, found), (label, found, first, reference))
    for longer, long, shorter, short in pairs:
        if prefix := _prefix(long, short):
            raise InputError(
                f"{first!r} and {label!r} cannot be merged: in {longer!r} every name begins with {prefix!r}, "
                f"and without it they are those of {shorter!r}; save {longer!r} anew without it"
            )
    owner, other = (first, label) if odd[0] in reference else (label, first)
    near = difflib.get_close_matches(odd[0], odd[1:], n=1, cutoff=0.8)
    raise InputError(
        f"{first!r} and {label!r} cannot be merged: {owner!r} has {odd[0]!r} and {other!r} has not "
        f"({len(odd)} such tensor{'s' * (len(odd) > 1)}{f'; near it: {near[0]!r}' if near else ''}); "
        "use models of one architecture, with the same names"
    )


def _prefix(long: Collection[str], short: Collection[str]) -> str:
    """What stands before every one of the names `short` in `long`, such as "module."; "" for nothing."""
    one = min(long)  # a common prefix keeps the order
    prefix = one.removesuffix(min(short))
    return prefix if prefix != one and {prefix + name for name in short} == {*long} else ""


def check_statistics(
    specs: Mapping[str, Spec], statistics: Mapping[str, Mapping[str, Spec]], *, elementwise: bool
) -> None:
    """Raises InputError for statistics, label -> specs, that are not of models with the tensors `specs`.

    Each expert must have statistics of the same names; those of an elementwise method have the tensors'
    names and shapes.
    """
    (first, reference), *others = statistics.items()
    for label, found in others:
        if odd := sorted(reference.keys() ^ found.keys()):
            raise InputError(
                f"only some experts' statistics have {odd[0]!r} (not those of both {first!r} and {label!r}): "
                "measure all of them anew, with one method and architecture"
            )
    for label, found in statistics.items() if elementwise else ():
        if not found.keys() & specs.keys():
            raise InputError(
                f"the statistics of {label!r} name none of its tensors, but {', '.join([*found][:3])}: they "
                "are of another method or architecture"
            )
        for name in found.keys() & specs.keys():
            if found[name].shape != specs[name].shape:
                raise InputError(
                    f"the statistics of {label!r} have {name!r} as {found[name].shape}, and the models as "
                    f"{specs[name].shape}: they are of another method or architecture"
                )


def differences(specs: Mapping[str, Mapping[str, Spec]]) -> list[str]:
    """What to know of the dtypes of models that can be merged, as sentences: differences, and float64."""
    (first, reference), *others = specs.items()
    told = []
    if wide := [name for name, spec in reference.items() if spec.dtype == torch.float64]:
        told.append(f"{len(wide)} tensors of {first} are float64 (the first: {wide[0]}); merged in float32")
    for label, found in others:
        odd = [name for name in reference if name in found and reference[name].dtype != found[name].dtype]
        if odd:
            mine, theirs = reference[odd[0]].dtype, found[odd[0]].dtype
            told.append(
                f"{len(odd)} tensors are {_short(theirs)} in {label} and {_short(mine)} in {first} "
                f"(the first: {odd[0]}); merged in float32"
            )
    return told


def _short(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
