"""`neulig export`: a merged model or an expert for open_clip, for Hugging Face, or as plain safetensors."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neulig_ray.cli.signals import cleans_up
from neulig_ray.errors import InputError
from neulig_ray.outputs import check_output
from neulig_ray.plugins import load_plugins, read_plugins
from neulig_ray.redaction import redacted

FORMATS = ("open_clip", "hf", "safetensors")


@cleans_up
def main(command: str, arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=f"neulig {command}",
        description=f"{__doc__} open_clip and hf are whole CLIPs: their text tower is the origin's. A model "
        "card is written beside the file, or into the folder.",
    )
    parser.add_argument(
        "file", metavar="FILE", help="a tower file: of `neulig merge`, `import` or an expert's"
    )
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--out", required=True, type=Path, metavar="PATH", help="a file; for hf a new folder")
    parser.add_argument(
        "--origin",
        help="whose text tower it gets, as an experiment's `origins` names it; default: FILE's own",
    )
    parser.add_argument("--storage", metavar="URI", help="a storage that may have the origin already")
    parser.add_argument("--plugins", nargs="*", default=[], metavar="PATH", help="files that add archs")
    given = parser.parse_args(arguments)
    load_plugins(read_plugins(given.plugins))
    if given.format == "hf" and given.out.exists():
        raise InputError(f"--out {str(given.out)!r} exists: name a new folder")
    check_output(given.out, parents=True)
    written = _export(given, redacted(shlex.join(["neulig", command, *arguments])))
    print("wrote " + ", ".join(map(str, written)))
    return 0


def _export(given: argparse.Namespace, command: str) -> list[Path]:
    from neulig_ray.models.formats import export
    from neulig_ray.models.tower_files import read_tower

    tower, metadata = read_tower(Path(given.file))
    if given.format == "safetensors":
        return export.write_safetensors(given.out, tower, metadata, command)
    arch = _arch(metadata, given.file)
    origin = given.origin or _own_origin(metadata, given.file)
    about = {**metadata, "text_tower": origin}
    if given.format == "hf":
        from neulig_ray.models.formats.huggingface import config_of

        config_of(arch)  # refuses before anything is downloaded
    from neulig_ray.stages.origins import open_stored

    try:
        clip = open_stored(arch.name, origin, given.storage)
    except InputError as error:
        if given.origin:
            raise
        raise InputError(
            f"{given.file} names its origin {origin!r}, which is not found by its name: say where it is, "
            f"with --origin {origin}=PATH or --storage. {error}"
        ) from error
    if given.format == "open_clip":
        return export.write_open_clip(given.out, tower, clip, about, command)
    return export.write_huggingface(given.out, tower, clip, arch, about, command)


def _arch(metadata: dict[str, Any], where: str) -> Any:
    from neulig_ray.models.archs import ARCHS
    from neulig_ray.models.tower_files import check_arch

    arch = ARCHS[metadata["arch"]]
    check_arch(metadata, arch, where)
    return arch


def _own_origin(metadata: dict[str, Any], where: str) -> str:
    """The origin that the file names; raises InputError where it names none, or several."""
    named = metadata.get("origin")
    if isinstance(named, str) and named and "," not in named:
        return named
    raise InputError(f"{where} names {'several origins' if named else 'no origin'}: name one with --origin")
