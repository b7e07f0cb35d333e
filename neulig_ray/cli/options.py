"""The options that all pipeline commands share, and their flags."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any

import tyro

from neulig_ray.errors import unknown
from neulig_ray.experiment.config import Experiment, check_values
from neulig_ray.pipeline.options import RunOptions
from neulig_ray.plugins import load_plugins, read_plugins


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """Where to run and what to print."""

    dry_run: bool = False
    """Print the plan and end."""
    json: bool = False
    """Print the results rows as JSON instead of the table."""


@dataclass(frozen=True, kw_only=True)
class _Flags:
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    options: Annotated[Options, tyro.conf.arg(name="")]


def parse(
    experiment: Experiment, arguments: Sequence[str], *, prog: str, description: str
) -> tuple[Experiment, Options]:
    """The experiment with the flags' values over its own, and the common options.

    Raises InputError for a flag that there is none of; exits 2 on a value that is not of its field's type.
    """
    flags, rest = tyro.cli(
        _Flags,
        prog=prog,
        description=description,
        args=list(arguments),
        default=_Flags(experiment=experiment, options=Options()),
        return_unknown_args=True,  # tyro's own message lists more than anybody reads
    )
    if rest:
        wrong = next((word for word in rest if word.startswith("-")), rest[0])
        known = [f"--{name}" for name in (*_names(experiment), *_names(flags.options))]
        raise unknown(f"argument of `{prog}`", wrong, known, f"`{prog} --help` describes them.")
    flags.options.check()
    return flags.experiment, flags.options


def _names(values: Any) -> Iterator[str]:
    """The fields as flags name them: `ligand.epochs`, `task-seed`."""
    for field in fields(values):
        name, value = field.name.replace("_", "-"), getattr(values, field.name)
        yield from (f"{name}.{inner}" for inner in _names(value)) if is_dataclass(value) else (name,)


def check(experiment: Experiment) -> None:
    """Raises InputError for a name that nothing answers to and for a value that no run could use.

    Within a fraction of a second: nothing heavy is imported for it, unless a plugin does.
    """
    from neulig_ray.pipeline.names import check_names  # numpy, which --help need not wait for

    load_plugins(read_plugins(experiment.plugins))
    check_names(experiment)
    check_values(experiment)
