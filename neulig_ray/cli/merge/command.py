"""`neulig merge`: one method over any state dicts, stand-alone."""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from neulig_ray.cli.merge.flags import general_parser, parse, plugins_of, spelled
from neulig_ray.cli.signals import cleans_up
from neulig_ray.cli.units import size
from neulig_ray.errors import InputError, StageError
from neulig_ray.plugins import load_plugins, read_plugins

if TYPE_CHECKING:
    import torch

    from neulig_ray.cli.merge.inputs import Inputs
    from neulig_ray.merging import Method
    from neulig_ray.merging.declare.per_tensor import PerTensorMethod
    from neulig_ray.merging.engine import Merge

_MOST_THREADS = 8


@cleans_up
def main(command: str, arguments: Sequence[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        parser = general_parser()
        if not {"-h", "--help"} & {*arguments}:
            raise InputError(f"no method: `neulig ls methods` lists them. {parser.format_usage().strip()}")
        parser.print_help()
        return 0
    load_plugins(read_plugins(plugins_of(arguments[1:])))
    from neulig_ray.merging import METHODS

    method = METHODS[arguments[0]]
    given, options = parse(method, arguments[1:])
    if given.masks is not None:
        from neulig_ray.cli.merge.masks import write_dense

        return write_dense(method, given)
    method.resolve(options)
    merging = _of_files(method)
    _check_flags(merging, given)
    return _merge(merging, given, options)


def _in_experiment(method: "Method") -> str:
    return f'run it in an experiment, methods=("{method.name}",), with `neulig run`'


def _of_files(method: "Method") -> "PerTensorMethod":
    """The method; raises InputError for one that does not merge files of weights."""
    from neulig_ray.merging.declare.method import MergingMethod
    from neulig_ray.merging.declare.per_tensor import PerTensorMethod

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


def _check_flags(method: "PerTensorMethod", given: argparse.Namespace) -> None:
    """Raises InputError for what can be told before any file is opened."""
    if method.needs_statistics and not given.statistics:
        raise InputError(
            f"{method.name} needs what is measured on each expert over its {', '.join(method.needs)}: "
            f"{_in_experiment(method)}, or give the files that an experiment measured: "
            "--statistics S1 S2 ... (safetensors, or stored ones such as statistics:LABEL), "
            "one for each expert"
        )
    if given.statistics and not method.needs_statistics:
        raise InputError(f"{method.name} measures nothing: leave out --statistics")
    if given.buffers == "re-estimate":
        raise InputError(
            "--buffers re-estimate needs images, and not only files of weights: experiments do it "
            f'(`neulig run`, methods=("{method.name}",)). Here: --buffers average, or base'
        )
    if given.base is None and (method.needs_base or given.buffers == "base"):
        asking = method.name if method.needs_base else "--buffers base"
        raise InputError(f"{asking} needs the origin that the experts were fine-tuned from: give --base B")
    if given.task is not None and not method.masked:
        raise InputError(
            f"--task belongs to methods that keep a mask for each task; {method.name} keeps none"
        )
    if given.out is None:
        raise InputError("--out F is missing: the safetensors file to write")


def _merge(method: "PerTensorMethod", given: argparse.Namespace, options: Mapping[str, Any]) -> int:
    import torch

    from neulig_ray.cli.merge.inputs import opened
    from neulig_ray.cli.merge.output import Output, check_target
    from neulig_ray.cli.merge.progress import MergeProgress
    from neulig_ray.merging.engine import Merge
    from neulig_ray.merging.models import Models

    files = (given.experts or (), given.base, given.statistics or (), given.storage, given.weights_key)
    with opened(*files) as inputs:
        target = check_target(given.out, inputs.paths)
        uses_base = method.needs_base or "base" in method.accepts or given.buffers == "base"
        read = [*inputs.sources.values(), *([inputs.base_source] if uses_base and inputs.base_source else [])]
        each = sum(spec.dtype.itemsize for source in read for spec in [next(iter(source.specs.values()))])
        with MergeProgress(each, quiet=given.quiet) as progress:
            models = Models(
                inputs.sources,
                inputs.base_source if uses_base else None,
                statistics=[found.checkpoint.source for found in inputs.statistics],
                threads=given.threads or min(_processors(), _MOST_THREADS),
                progress=progress,
            )
            task = None if given.task is None else _index(given.task, inputs.labels)
            merge = Merge.of(method, models, options, given.buffers, task)
            dtype = getattr(torch, given.dtype) if given.dtype else None
            output = Output.of(merge, inputs, target, dtype)
            if not given.quiet:
                _tell(inputs, method, options, output.whole, uses_base, dtype)
            if given.dry_run:
                _plan(merge, inputs, output)
                return 0
            started = time.perf_counter()
            try:
                output.write()
            except StageError as error:
                print(f"failed: {error}\nNothing was written.", file=sys.stderr)
                return 1
            except KeyboardInterrupt:
                print("\ninterrupted: nothing was written", file=sys.stderr)
                return 1
        seconds = time.perf_counter() - started
        if not given.quiet:
            written = target.stat().st_size
            rate = (progress.bytes_read + written) / seconds
            if constants := sorted(models.constants):
                print(
                    f"note: {len(constants)} tensors with infinite numbers or NaN are the same in all models "
                    f"(the first: {constants[0]}): copied",
                    file=sys.stderr,
                )
            print(
                f"{given.out}: {output.what}, {size(written)}, {method.name} of {models.n} in "
                f"{seconds:.1f} s ({size(progress.bytes_read)} read in {progress.passes} "
                f"pass{'' if progress.passes == 1 else 'es'}, {size(rate)}/s)"
            )
    return 0


def _processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _index(task: str, labels: Sequence[str]) -> int:
    """The expert that --task names by its label or its place, from 0 on."""
    from neulig_ray.errors import unknown

    if task in labels:
        return labels.index(task)
    if task.isdigit() and int(task) < len(labels):
        return int(task)
    raise unknown("task", task, labels, f"Or its place among the experts, 0 to {len(labels) - 1}.")


def _tell(
    inputs: "Inputs",
    method: "Method",
    given: Mapping[str, Any],
    whole: bool,
    uses_base: bool,
    dtype: "torch.dtype | None",
) -> None:
    from neulig_ray.weights.compatibility import differences

    notes = [*inputs.notes, *differences(inputs.specs, dtype)]
    if inputs.base is not None and not uses_base and not whole:
        notes.append(f"{method.name} does not use the base")
    for name, grid in method.grid.items():
        if name not in given:
            notes.append(
                f"--{name.replace('_', '-')} is {spelled(method.options[name])}, the default; experiments "
                f"choose it on val, between {spelled(min(grid))} and {spelled(max(grid))}"
            )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _plan(merge: "Merge", inputs: "Inputs", output: Any) -> None:
    options = " ".join(f"--{name.replace('_', '-')} {spelled(v)}" for name, v in merge.options.items())
    print(f"method    {merge.method.name} {options}".rstrip())
    for expert in inputs.experts:
        print(f"expert    {expert.label}  {expert.path}")
    if inputs.base is not None:
        print(f"base      {inputs.base.path}")
    print(f"buffers   {merge.buffers}")
    print(f"threads   {merge.models.threads}")
    print(f"output    {output.target}: {output.what}, {len(output.specs)} tensors, {size(output.bytes)}")
    print("nothing was written (--dry-run)")
