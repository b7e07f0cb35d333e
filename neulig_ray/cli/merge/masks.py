"""`neulig merge METHOD --masks M --task T`: one task's dense model out of a masked model."""

import argparse
import sys
from pathlib import Path

from neulig_ray.api.merge_output import check_target
from neulig_ray.cli.units import size
from neulig_ray.errors import InputError, StageError
from neulig_ray.merging import Method
from neulig_ray.merging.masks import MaskedModel
from neulig_ray.weights.metadata import file_metadata
from neulig_ray.weights.state_dicts import open_checkpoint
from neulig_ray.weights.tensor_writer import TensorWriter


def write_dense(method: Method, given: argparse.Namespace) -> int:
    """Write it tensor by tensor; raises InputError for a file that is not the method's masked model."""
    if given.experts or given.base:
        raise InputError(
            "--masks takes the place of --experts and --base: the masked model holds all of them"
        )
    for name in ("task", "out"):
        if getattr(given, name) is None:
            raise InputError(f"--masks needs --{name} {name[0].upper()}")
    checkpoint = open_checkpoint(given.masks)
    about = dict(checkpoint.about)
    if about.get("kind") != "masked" or about.get("method") != method.name:
        found = f"a {about['kind']} of {about.get('method')}" if "kind" in about else "a state dict"
        raise InputError(f"--masks {given.masks!r} is {found}, not a masked model of {method.name}")
    try:
        labels = tuple(str(expert["label"]) for expert in about["experts"])
        dense_kind = str(about.pop("dense_kind"))
    except (LookupError, TypeError):
        raise InputError(
            f"--masks {given.masks!r} does not say which experts it holds: merge them anew"
        ) from None
    model = MaskedModel(checkpoint.source, labels)
    task = model.task(given.task)
    target = check_target(given.out, {given.masks: Path(given.masks)})
    about |= {"kind": dense_kind, "task": given.task}
    if given.dry_run:
        return 0
    try:
        with TensorWriter(target, model.specs, file_metadata(about)) as writer:
            for name in model.specs:
                writer.write(name, model.tensor(name, task))
    except StageError as error:
        print(f"failed: {error}\nNothing was written.", file=sys.stderr)
        return 1
    if not given.quiet:
        print(f"{given.out}: the model of {given.task}, {size(target.stat().st_size)}")
    return 0
