"""`neulig merge`: one method over any state dicts, stand-alone."""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neulig_ray.cli.merge.flags import general_parser, parse, plugins_of, spelled
from neulig_ray.cli.signals import cleans_up
from neulig_ray.cli.units import size
from neulig_ray.errors import InputError, StageError
from neulig_ray.plugins import load_plugins, read_plugins

if TYPE_CHECKING:
    import torch

    from neulig_ray.api.merge_inputs import Inputs
    from neulig_ray.api.merge_output import Output
    from neulig_ray.merging import Method
    from neulig_ray.merging.declare.per_tensor import PerTensorMethod
    from neulig_ray.merging.engine import Merge


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
    from neulig_ray.api.merging import check_given, of_weights

    merging = of_weights(method)
    check_given(
        merging,
        base=given.base is not None,
        statistics=bool(given.statistics),
        buffers=given.buffers,
        task=given.task,
    )
    if given.out is None:
        raise InputError("--out F is missing: the safetensors file to write")
    return _merge(merging, given, options)


def _merge(method: "PerTensorMethod", given: argparse.Namespace, options: Mapping[str, Any]) -> int:
    import torch

    from neulig_ray.api.merge_inputs import opened
    from neulig_ray.api.merge_output import Output, check_target
    from neulig_ray.api.merging import prepare, uses_base
    from neulig_ray.cli.merge.progress import MergeProgress

    files = (given.experts or (), given.base, given.statistics or (), given.storage, given.weights_key)
    with opened(*files) as inputs:
        target = check_target(given.out, inputs.paths)
        with_base = uses_base(method, given.buffers)
        read = [*inputs.sources.values(), *([inputs.base_source] if with_base and inputs.base_source else [])]
        each = sum(spec.dtype.itemsize for source in read for spec in [next(iter(source.specs.values()))])
        with MergeProgress(each, quiet=given.quiet) as progress:
            merge = prepare(
                method,
                inputs,
                options,
                buffers=given.buffers,
                task=given.task,
                threads=given.threads,
                progress=progress,
            )
            dtype = getattr(torch, given.dtype) if given.dtype else None
            output = Output.of(merge, inputs, dtype)
            if not given.quiet:
                _tell(inputs, method, options, output.whole, with_base, dtype)
            if given.dry_run:
                _plan(merge, inputs, output, target)
                return 0
            started = time.perf_counter()
            try:
                output.write(target)
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
            if constants := sorted(merge.models.constants):
                print(
                    f"note: {len(constants)} tensors with infinite numbers or NaN are the same in all models "
                    f"(the first: {constants[0]}): copied",
                    file=sys.stderr,
                )
            print(
                f"{given.out}: {output.what}, {size(written)}, {method.name} of {merge.models.n} in "
                f"{seconds:.1f} s ({size(progress.bytes_read)} read in {progress.passes} "
                f"pass{'' if progress.passes == 1 else 'es'}, {size(rate)}/s)"
            )
    return 0


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


def _plan(merge: "Merge", inputs: "Inputs", output: "Output", target: Path) -> None:
    options = " ".join(f"--{name.replace('_', '-')} {spelled(v)}" for name, v in merge.options.items())
    print(f"method    {merge.method.name} {options}".rstrip())
    for expert in inputs.experts:
        print(f"expert    {expert.label}  {expert.path}")
    if inputs.base is not None:
        print(f"base      {inputs.base.path}")
    print(f"buffers   {merge.buffers}")
    print(f"threads   {merge.models.threads}")
    print(f"output    {target}: {output.what}, {len(output.specs)} tensors, {size(output.bytes)}")
    print("nothing was written (--dry-run)")
