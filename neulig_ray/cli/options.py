"""The options that all pipeline commands share, and their flags."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from neulig_ray.config import Experiment
from neulig_ray.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where to run and what to print."""

    storage: str = "./neulig-storage"
    """Local path, s3:// or gs://: what Ray's storage_path accepts."""
    address: str | None = None
    """Ray head as HOST:PORT, or `auto`; None: a cluster of this machine alone."""
    tracking_uri: str | None = None
    """MLflow server; None: a sqlite database inside a local storage."""
    dry_run: bool = False
    """Print the plan and end."""
    quiet: bool = False
    """Print nothing but the table."""
    json: bool = False
    """Print the results rows as JSON instead of the table."""


@dataclass(frozen=True, kw_only=True)
class _Flags:
    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    options: Annotated[Options, tyro.conf.arg(name="")]


def parse(
    experiment: Experiment, arguments: Sequence[str], *, prog: str, description: str
) -> tuple[Experiment, Options]:
    """The experiment with the flags' values over its own, and the common options; exits 2 on a wrong flag."""
    flags = tyro.cli(
        _Flags,
        prog=prog,
        description=description,
        args=list(arguments),
        default=_Flags(experiment=experiment, options=Options()),
    )
    options = flags.options
    if (
        "://" in options.storage
        and not options.storage.startswith("file://")
        and options.tracking_uri is None
    ):
        unread = "; MLFLOW_TRACKING_URI is not read" if os.environ.get("MLFLOW_TRACKING_URI") else ""
        raise InputError(
            f"--storage {options.storage!r} is not local, so that MLflow's sqlite database cannot "
            f"lie in it: give --tracking-uri http://HOST:PORT (an MLflow server{unread})"
        )
    return flags.experiment, options
