"""`neulig report`: one self-contained HTML page for one or several experiments."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from neulig_ray.cli.experiments import choose, described, load_file
from neulig_ray.cli.options import check, parse
from neulig_ray.errors import InputError
from neulig_ray.outputs import check_output, write_output
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
        from neulig_ray.pipeline.run import Session

        with Session(experiment, options) as session:
            if options.dry_run:
                session.print_plan()
                return 0
            session.run("evaluate")
            session.results()
            session.write_report(out)
            return session.status()
    return _several(names, flags, out)


def _several(names: Sequence[str], flags: Sequence[str], out: Path | None) -> int:
    """One page of what experiments have measured so far; nothing is run."""
    found = {}
    for name in names:
        file = load_file(name)
        experiment, rest = choose(file.experiment, file.variants, flags)
        found[name] = parse(experiment, rest, prog="neulig report", description=file.about)

    from rich.console import Console

    from neulig_ray.pipeline.results import read_results
    from neulig_ray.report.html import render
    from neulig_ray.storage.storage import Storage

    frames, provenance, uri = {}, {}, ""
    for name, (experiment, options) in found.items():
        uri = options.storage
        try:
            frames[experiment.name], provenance[experiment.name] = read_results(Storage(uri), experiment.name)
        except FileNotFoundError:
            raise InputError(
                f"{experiment.name} has no results in {uri}: `neulig run {name}` makes them"
            ) from None
    page = render(frames, provenance)
    if out is None:
        storage = Storage(uri)
        storage.write(Top.REPORT, page.encode("utf-8", "replace"))
        Console(stderr=True).print(f"report {storage.full(Top.REPORT)}", soft_wrap=True)
    else:
        write_output(out, page.encode("utf-8", "replace"))
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
