"""Merging models that lie in files, in a storage or in memory, by any method that needs weights alone."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, overload

import torch

from neulig_ray.api.merge_inputs import Inputs, Model, opened, tensor_files
from neulig_ray.api.merge_output import Output, check_target
from neulig_ray.errors import InputError, unknown
from neulig_ray.merging import METHODS, Method
from neulig_ray.merging.declare.method import MergingMethod
from neulig_ray.merging.declare.per_tensor import PerTensorMethod
from neulig_ray.merging.engine import Buffers, Merge
from neulig_ray.merging.models import Models, Progress
from neulig_ray.pipeline.options import RunOptions

Experts = Mapping[str, Model] | Sequence[Model] | str | Path
DType = torch.dtype | Literal["float32", "float16", "bfloat16"]
_MOST_THREADS: Final = 8


@overload
def merge(
    method: str,
    experts: Experts,
    base: Model | None = ...,
    out: None = ...,
    *,
    statistics: Sequence[Model] = ...,
    task: str | int | None = ...,
    buffers: Buffers = ...,
    dtype: DType | None = ...,
    storage: str | Path = ...,
    weights_key: str = ...,
    threads: int | None = ...,
    **options: Any,
) -> dict[str, torch.Tensor]: ...
@overload
def merge(
    method: str,
    experts: Experts,
    base: Model | None = ...,
    *,
    out: str | Path,
    statistics: Sequence[Model] = ...,
    task: str | int | None = ...,
    buffers: Buffers = ...,
    dtype: DType | None = ...,
    storage: str | Path = ...,
    weights_key: str = ...,
    threads: int | None = ...,
    **options: Any,
) -> Path: ...
def merge(
    method: str,
    experts: Experts,
    base: Model | None = None,
    out: str | Path | None = None,
    *,
    statistics: Sequence[Model] = (),
    task: str | int | None = None,
    buffers: Buffers = "average",
    dtype: DType | None = None,
    storage: str | Path = RunOptions.storage,
    weights_key: str = "",
    threads: int | None = None,
    **options: Any,
) -> dict[str, torch.Tensor] | Path:
    """Merge two or more models of one architecture, tensor by tensor, as `neulig merge` does.

    A model is a state dict (name -> tensor of any shape, float or integer), an nn.Module, the path of a
    safetensors file or of what torch.save wrote of a state dict, a model's folder or index as model hubs have
    them, the name of an artifact of `storage` (`expert:tiny-vit.digits@seed-0`), or one of `load_experts`.
    `experts`: label -> model, a list of models, or a folder, whose safetensors files are the experts in the
    order of their names. Inputs are left as they are.

    `base`: the origin that the experts were fine-tuned from, where the method needs it. `options`: the
    method's own (`list_methods()`). `statistics`: of measured methods, what was measured on each expert.
    `task`: of methods that keep a mask for each task, the label or place of the expert whose dense model is
    wanted. `weights_key`: of the state dict to take out of files that hold several. `buffers`: BatchNorm
    statistics become the experts' mean, or the base's. `threads`: None: one for each processor, up to 8; the
    numbers do not depend on it.

    Without `out` the merged state comes back, on the CPU. With `out` it is written, as it is made, to that
    safetensors file, whole or not at all, in memory that does not grow with the number of models in files,
    and the path comes back. Floats have the first expert's dtypes unless `dtype` is given; the arithmetic is
    float32.

    Raises InputError for an unknown method or option, and for models that cannot be read or do not fit
    together, before anything is merged; StageError for NaN in the result, for numbers beyond float16's
    largest, and for a full disk.

    Example:
        >>> import torch
        >>> import neulig_ray as nl
        >>> base = {"w": torch.zeros(2)}
        >>> experts = {"a": {"w": torch.tensor([1.0, 0.0])}, "b": {"w": torch.tensor([3.0, 2.0])}}
        >>> nl.merge("average", experts)
        {'w': tensor([2., 1.])}
        >>> nl.merge("task-arithmetic", experts, base, scaling=0.5)
        {'w': tensor([2., 1.])}
        >>> nl.merge("ties", experts, base, out="merged.safetensors", density=1.0).name
        'merged.safetensors'
    """
    METHODS[method].resolve(options)
    found = of_weights(METHODS[method])
    check_given(found, base=base is not None, statistics=bool(statistics), buffers=buffers, task=task)
    if found.masked and task is None and out is None:
        raise InputError(
            f"{method} keeps a mask for each task: name the one whose model is wanted (task=LABEL), or a "
            "file for all of them (out=PATH)"
        )
    with opened(_listed(experts), base, statistics, str(storage), weights_key) as inputs:
        target = None if out is None else check_target(str(out), inputs.paths)
        made = prepare(found, inputs, options, buffers=buffers, task=task, threads=threads)
        output = Output.of(made, inputs, _dtype(dtype))
        if target is None or out is None:
            return output.state()
        output.write(target)
        return Path(out)


def _listed(experts: Experts) -> Mapping[str, Model] | Sequence[Model]:
    """The experts one by one: of a folder, its safetensors files."""
    if not isinstance(experts, str | Path):
        return experts
    folder = Path(experts).expanduser()
    if not folder.is_dir():
        raise InputError(f"experts is {str(experts)!r}, which is no folder: give a list or a dict of models")
    if not (files := tensor_files(folder)):
        raise InputError(f"experts is {str(experts)!r}, a folder without a safetensors file")
    return files


def _dtype(given: DType | None) -> torch.dtype | None:
    if given is None:
        return None
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if given in known.values():
        return given if isinstance(given, torch.dtype) else None
    if given not in known:
        raise unknown("dtype of a merged model", str(given), known)
    return known[str(given)]


def of_weights(method: Method) -> PerTensorMethod:
    """The method; raises InputError for one that needs more than weights."""
    if isinstance(method, PerTensorMethod):
        return method
    if not isinstance(method, MergingMethod):
        raise InputError(
            f"{method.name} is of kind {method.kind}: it combines predictions, and there is no "
            f"merged file; {_in_experiment(method)}"
        )
    raise InputError(
        f"{method.name} needs {', '.join(method.needs)} and not only files of weights: "
        f"{_in_experiment(method)}"
    )


def _in_experiment(method: Method) -> str:
    return f'run it in an experiment, methods=("{method.name}",), with `neulig run`'


def check_given(
    method: PerTensorMethod, *, base: bool, statistics: bool, buffers: str, task: str | int | None
) -> None:
    """Raises InputError for what can be told before any model is opened.

    `base` and `statistics`: whether they are given.
    """
    if method.needs_statistics and not statistics:
        raise InputError(
            f"{method.name} needs what is measured on each expert over its {', '.join(method.needs)}: "
            f"{_in_experiment(method)}, or give the files that an experiment measured: "
            "--statistics S1 S2 ... (safetensors, or stored ones such as statistics:LABEL), "
            "one for each expert"
        )
    if statistics and not method.needs_statistics:
        raise InputError(f"{method.name} measures nothing: leave out --statistics")
    if buffers == "re-estimate":
        raise InputError(
            "--buffers re-estimate needs images, and not only files of weights: experiments do it "
            f'(`neulig run`, methods=("{method.name}",)). Here: --buffers average, or base'
        )
    if buffers not in ("average", "base"):
        raise unknown("rule for buffers", buffers, ("average", "base"))
    if not base and (method.needs_base or buffers == "base"):
        asking = method.name if method.needs_base else "--buffers base"
        raise InputError(f"{asking} needs the origin that the experts were fine-tuned from: give --base B")
    if task is not None and not method.masked:
        raise InputError(
            f"--task belongs to methods that keep a mask for each task; {method.name} keeps none"
        )


def uses_base(method: PerTensorMethod, buffers: str) -> bool:
    """Whether the base has a part in the merge, where one is given."""
    return method.needs_base or "base" in method.accepts or buffers == "base"


def prepare(
    method: PerTensorMethod,
    inputs: Inputs,
    options: Mapping[str, Any],
    *,
    buffers: Buffers = "average",
    task: str | int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Merge:
    """The merge of opened models; raises InputError where they do not go with the method."""
    models = Models(
        inputs.sources,
        inputs.base_source if uses_base(method, buffers) else None,
        statistics=[found.checkpoint.source for found in inputs.statistics],
        threads=threads or min(_processors(), _MOST_THREADS),
        progress=progress,
    )
    place = None if task is None else _index(task, inputs.labels)
    return Merge.of(method, models, options, buffers, place)


def _processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _index(task: str | int, labels: Sequence[str]) -> int:
    """The expert that `task` names by its label or its place, from 0 on."""
    if task in labels:
        return labels.index(str(task))
    if str(task).isdigit() and int(task) < len(labels):
        return int(task)
    raise unknown("task", str(task), labels, f"Or its place among the experts, 0 to {len(labels) - 1}.")
