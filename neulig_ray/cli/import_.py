"""`neulig import`: an expert that another project made becomes a tower file, or a tower in the storage."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neulig_ray.cli.signals import cleans_up
from neulig_ray.errors import InputError
from neulig_ray.outputs import check_output
from neulig_ray.plugins import load_plugins, read_plugins
from neulig_ray.redaction import redacted

if TYPE_CHECKING:
    from neulig_ray.models.formats.checkpoints import Checkpoint
    from neulig_ray.models.formats.towers import Tower

_SOURCES = """\
SOURCE is one of
  a folder or hub id (hf-hub:OWNER/NAME) of transformers' CLIPVisionModel, CLIPVisionModelWithProjection or
  CLIPModel;
  a folder or hub id of open_clip;
  a .safetensors file, or a file of torch.save or pickle, that holds an open_clip model, its visual tower, or
  a module around one (TALL-masks' state dicts, task_vectors' finetuned.pt).
Pickles are read in a process of their own that rebuilds tensors and runs nothing.
"""


@cleans_up
def main(command: str, arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=f"neulig {command}",
        description=__doc__,
        epilog=_SOURCES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--arch", required=True, help="`neulig ls archs`, or any open_clip ViT or RN name")
    parser.add_argument("--task", required=True, help="what it was fine-tuned on (`neulig ls tasks`)")
    parser.add_argument(
        "--origin",
        required=True,
        help="what it was fine-tuned from, as an experiment's `origins` names it: an open_clip tag such as "
        "openai, a path, hf-hub:OWNER/NAME, NAME=PLACE. Read only where SOURCE lacks the projection",
    )
    parser.add_argument(
        "--weights-key",
        default="",
        metavar="KEY",
        help="where SOURCE holds several models, such as model and ema: the key of the one to take, or what "
        "the names of its tensors begin with",
    )
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--out", type=Path, metavar="FILE", help="the tower file (.safetensors)")
    place.add_argument("--storage", metavar="URI", help="the storage that experiments read")
    parser.add_argument(
        "--plugins", nargs="*", default=[], metavar="PATH", help="files that add archs or tasks"
    )
    given = parser.parse_args(arguments)
    load_plugins(read_plugins(given.plugins))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", given.task):
        raise InputError(f"--task {given.task!r}: use letters, digits, '_', '.' and '-'")
    if given.out is not None and given.out.suffix != ".safetensors":
        raise InputError(f"--out {str(given.out)!r}: a tower file ends in .safetensors")
    if given.out is not None:
        check_output(given.out, parents=True)
    return _import(given)


def _import(given: argparse.Namespace) -> int:
    from neulig_ray.models.archs import ARCHS
    from neulig_ray.models.origin_source import parse_origin

    arch, origin = ARCHS[given.arch], parse_origin(given.origin)  # a misspelt one is told before torch comes
    from neulig_ray.models.formats.checkpoints import locate, read_checkpoint
    from neulig_ray.models.formats.origins import check_origin
    from neulig_ray.models.formats.towers import expert_bytes, find_tower
    from neulig_ray.tasks import TASKS

    if origin.kind == "tag":
        check_origin(arch, origin)
    checkpoint = read_checkpoint(locate(given.source), given.weights_key)
    tower = find_tower(checkpoint, arch, lambda: _origin(given).visual.proj.detach())
    data = expert_bytes(
        tower, checkpoint, arch, task=given.task, origin=origin.name, source=_told(given.source)
    )
    _tell(checkpoint, tower)
    if given.task not in TASKS:
        print(f"  task {given.task}: `neulig ls tasks` has none of that name; it can be merged all the same")
    _write(given, data)
    return 0


def _origin(given: argparse.Namespace) -> Any:
    from neulig_ray.stages.origins import open_stored

    return open_stored(given.arch, given.origin, given.storage)


def _told(source: str) -> str:
    """The source as it stays in the file: a path by its last two parts, no folder of somebody's machine."""
    if ":" in source:
        return redacted(source)
    return "/".join(Path(source).expanduser().resolve().parts[-2:])


def _tell(checkpoint: "Checkpoint", tower: "Tower") -> None:
    print(f"{checkpoint.where}: {tower.layout}, {len(tower.state)} tensors of the visual tower")
    if checkpoint.key:
        beside = f"; left out: {', '.join(checkpoint.others[:5])}" if checkpoint.others else ""
        print(f"  its weights are those of {checkpoint.key!r}{beside}")
    if tower.projection_from_origin:
        print("  its projection into the embeddings is the origin's: a CLIPVisionModel ends before it")
    if tower.dropped:
        values = sum(tensor.numel() for tensor in tower.dropped.values())
        shown = ", ".join(list(tower.dropped)[:3])
        print(f"  left out: {len(tower.dropped)} tensors, {values:,} values, not of the tower ({shown}, ...)")
    if checkpoint.inert:
        print(f"  a pickle: nothing of it was run; left inert: {', '.join(checkpoint.inert[:5])}")


def _write(given: argparse.Namespace, data: bytes) -> None:
    if given.out is not None:
        from neulig_ray.models.formats.export import write_whole

        write_whole(given.out, data)
        print(f"wrote {given.out}; in an experiment: --experts {given.out}")
        return
    from neulig_ray.stages.imported_experts import store_bytes, stored_name
    from neulig_ray.storage.storage import Storage

    storage = Storage(given.storage)
    storage.check_writable()
    print(f"stored; in an experiment of {storage.shown}: --experts {stored_name(store_bytes(data, storage))}")
