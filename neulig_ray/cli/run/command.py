"""`neulig run`, and the commands that stop earlier in the pipeline."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from neulig_ray.cli.experiments import Variants, choose, described, load_file
from neulig_ray.cli.options import Options, check, parse
from neulig_ray.experiment.config import Experiment
from neulig_ray.paths import kept_offline

if TYPE_CHECKING:
    from neulig_ray.pipeline.outcome import Results


def main(command: str, arguments: Sequence[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        return _without_experiment(command, arguments)
    file = load_file(arguments[0])
    return run_command(
        command,
        file.experiment,
        arguments[1:],
        prog=f"neulig {command} {arguments[0]}",
        about=file.about,
        variants=file.variants,
    )


def _without_experiment(command: str, arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=f"neulig {command}",
        usage=f"neulig {command} EXPERIMENT [--storage URI] [--address HOST:PORT] [--tracking-uri URI] "
        "[--seed N] [--plugins PATH ...] [--dry-run] [--quiet] [--json] [--field.name value ...]",
        description=f"EXPERIMENT: a file, or the stem of one in ./experiments or of the package's own "
        f"(`neulig ls experiments`). "
        f"`neulig {command} EXPERIMENT --help` lists every field with its value there.",
    )
    parser.add_argument("EXPERIMENT", nargs=1)
    parser.parse_args(arguments)
    return 2


def run_command(
    command: str,
    experiment: Experiment,
    arguments: Sequence[str],
    *,
    prog: str,
    about: str = "",
    variants: Variants | None = None,
) -> int:
    """Run the pipeline of an experiment, or of its variant, up to what the command asks for; exit status."""
    experiment, arguments = choose(experiment, variants or {}, arguments)
    about = described(about, variants or {})
    experiment, options = parse(experiment, arguments, prog=prog, description=about)
    check(experiment)
    from neulig_ray.cli.run.plan_table import print_stages
    from neulig_ray.pipeline.run import Session

    with (
        kept_offline() if options.dry_run else nullcontext(),
        Session(experiment, options) as session,
    ):
        if options.dry_run:
            from neulig_ray.cli.run.dry_run import print_plan

            print_plan(session)
            return 0
        results = session.run(command, None if options.quiet else print_stages)
        if results is not None:
            _print(results, options)
        return 0 if session.complete else 1


def _print(results: "Results", options: Options) -> None:
    if options.json:
        results.rows.to_json(sys.stdout, orient="records", indent=1)
        print()
        return
    from rich.console import Console

    from neulig_ray.report.console import print_tables

    print_tables(results.tables, Console())
