"""`neulig report`: one self-contained HTML page for one or several experiments."""

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path

from neulig_ray.cli.experiments import choose, described, load_file
from neulig_ray.cli.options import check, parse
from neulig_ray.errors import InputError
from neulig_ray.outputs import check_output
from neulig_ray.plugins import load_plugins, read_plugins
from neulig_ray.storage.layout import Top


def main(command: str, arguments: Sequence[str]) -> int:
    names = list(arguments)
    first_flag = next((i for i, word in enumerate(names) if word.startswith("-")), len(names))
    names, flags = names[:first_flag], names[first_flag:]
    if not names:
        return _usage(command, flags)
    out, flags = _take_out(flags)
    if len(names) == 1:
        file = load_file(names[0])
        experiment, flags = choose(file.experiment, file.variants, flags)
        about = described(file.about, file.variants)
        experiment, options = parse(experiment, flags, prog=f"neulig {command} {names[0]}", description=about)
        check(experiment)
        from rich.console import Console

        from neulig_ray.cli.run.plan_table import print_stages
        from neulig_ray.pipeline.run import Session

        with Session(experiment, options) as session:
            if options.dry_run:
                from neulig_ray.cli.run.dry_run import print_plan

                print_plan(session)
                return 0
            results = session.run("evaluate", None if options.quiet else print_stages)
            assert results is not None
            place = results.report(out)
            if out is None and not options.quiet:
                Console(stderr=True).print(f"report       {place}", highlight=False, soft_wrap=True)
            return 0 if session.complete else 1
    return _several(names, flags, out)


def _several(names: Sequence[str], flags: Sequence[str], out: Path | None) -> int:
    """One page of what experiments have measured so far; nothing is run."""
    found = {}
    for name in names:
        file = load_file(name)
        experiment, rest = choose(file.experiment, file.variants, flags)
        found[name] = parse(experiment, rest, prog="neulig report", description=file.about)
        with contextlib.suppress(InputError):  # the legend alone needs them: what their granularities mean
            load_plugins(read_plugins(found[name][0].plugins))

    from rich.console import Console

    from neulig_ray.pipeline.outcome import Results, write_report
    from neulig_ray.storage.storage import Storage

    results = [Results.read(Storage(options.storage), e.name) for e, options in found.values()]
    place = write_report(results, out, Top.REPORT)
    if out is None:
        Console(stderr=True).print(f"report {place}", soft_wrap=True)
    return 0


def _take_out(flags: Sequence[str]) -> tuple[Path | None, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out")
    given, rest = parser.parse_known_args(flags)
    return None if given.out is None else check_output(given.out), rest


def _usage(command: str, flags: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=f"neulig {command}",
        usage=f"neulig {command} EXPERIMENT [EXPERIMENT ...] [--out FILE] [--storage URI] [--FIELD VALUE]",
        description="Of one experiment, what is missing is run first; several are shown as far as they "
        "have come. The page is written into the storage unless --out names a file.",
    )
    parser.add_argument("EXPERIMENT", nargs="+")
    parser.parse_args(flags)
    return 2
