"""Whether models can be merged at all: the same names, shapes and kinds of tensors."""

import difflib
from collections.abc import Collection, Mapping, Sequence

import torch

from neulig_ray.errors import InputError
from neulig_ray.weights.factors import check_factors, is_integer
from neulig_ray.weights.tensor_file import Spec


def check_specs(specs: Mapping[str, Mapping[str, Spec]]) -> None:
    """Raises InputError unless all models have the same names, shapes and kinds (float or integer).

    Adapters and quantised models are refused as such.
    """
    if not specs:
        raise InputError("no model to merge: give at least one")
    if empty := [label for label, found in specs.items() if not found]:
        raise InputError(f"{empty[0]!r} holds no tensor: give a model's state dict")
    for label, found in specs.items():
        check_factors(label, found)
    check_pairs(specs)


def check_pairs(specs: Mapping[str, Mapping[str, Spec]]) -> None:
    """The same for models that are known to hold whole weights."""
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


def _check_names(first: str, reference: Mapping[str, Spec], label: str, found: Mapping[str, Spec]) -> None:
    odd = sorted(reference.keys() ^ found.keys())
    if not odd:
        return
    both = {**reference, **found}
    odd.sort(key=lambda name: is_integer(both[name]))  # what can be lent is not what keeps them apart
    pairs = ((first, reference, label, found), (label, found, first, reference))
    for longer, long, shorter, short in pairs:
        if prefix := _prefix(long, short):
            raise InputError(
                f"{first!r} and {label!r} cannot be merged: in {longer!r} every name begins with {prefix!r}, "
                f"and without it they are those of {shorter!r}; save {longer!r} anew without it"
            )
    owner, other = (first, label) if odd[0] in reference else (label, first)
    mine = reference if odd[0] in reference else found
    names, rest = [name for name in odd if name in mine], [name for name in odd if name not in mine]
    raise lacking(owner, other, names, rest)


def lacking(owner: str, other: str, names: Sequence[str], rest: Collection[str]) -> InputError:
    """The error for tensors that the model `owner` has and `other`, which has `rest` besides, has not."""
    near = difflib.get_close_matches(names[0], rest, n=1, cutoff=0.8)
    return InputError(
        f"{owner!r} and {other!r} cannot be merged: {owner!r} has {names[0]!r} and {other!r} has not "
        f"({len(names)} such tensor{'s' * (len(names) > 1)}{f'; near it: {near[0]!r}' if near else ''}); "
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


def differences(specs: Mapping[str, Mapping[str, Spec]], dtype: torch.dtype | None = None) -> list[str]:
    """What to know of the dtypes of models that can be merged, as sentences: differences, and float64.

    `dtype`: what the floats are written as, where that is not the first model's.
    """
    (first, reference), *others = specs.items()
    floats = [name for name, spec in reference.items() if spec.dtype.is_floating_point]

    def arithmetic(names: Sequence[str]) -> str:
        written = dict.fromkeys(_short(dtype or reference[name].dtype) for name in names)
        return f"(the first: {names[0]}); merged in float32, written as {' and '.join(written)}"

    told = []
    if wide := [name for name in floats if reference[name].dtype == torch.float64]:
        told.append(f"{len(wide)} tensors of {first} are float64 {arithmetic(wide)}")
    for label, found in others:
        odd = [name for name in floats if name in found and reference[name].dtype != found[name].dtype]
        if odd:
            mine, theirs = reference[odd[0]].dtype, found[odd[0]].dtype
            told.append(
                f"{len(odd)} tensors are {_short(theirs)} in {label} and {_short(mine)} in {first} "
                f"{arithmetic(odd)}"
            )
    return told


def _short(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
