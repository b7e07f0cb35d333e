"""`neulig storage`: what is stored, whether its hashes are right, and what nothing refers to."""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from neulig_ray.cli.units import size
from neulig_ray.errors import InputError, unknown
from neulig_ray.storage import scratch
from neulig_ray.storage.inventory import StoredArtifact, Survey, damaged, foreign, imports, referred, survey
from neulig_ray.storage.storage import Storage


def main(command: str, arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog=f"neulig {command}", description=__doc__)
    parser.add_argument("what", choices=("ls", "verify", "prune"))
    parser.add_argument("kind", nargs="?", help="of ls: the artifacts of one kind, such as model, by name")
    parser.add_argument("--storage", default="./neulig-storage", metavar="URI")
    parser.add_argument("--yes", action="store_true", help="prune without asking")
    parser.add_argument(
        "--imported", action="store_true", help="prune imported experts, too, that no results were made from"
    )
    given = parser.parse_args(arguments)
    if given.kind and given.what != "ls":
        parser.error(f"{given.what} takes no kind: it looks at the whole storage")
    storage = Storage(given.storage)
    found = survey(storage)
    if given.what == "ls":
        status = _ls_kind(found.stored, given.kind) if given.kind else _ls(found.stored)
    elif given.what == "verify":
        status = _verify(storage, found)
    else:
        status = _prune(storage, found, given.yes, given.imported)
    for path, what in found.strays.items():
        print(f"not of this storage, left alone: {path} ({what})", file=sys.stderr)
    return status


def _ls(stored: Sequence[StoredArtifact]) -> int:
    by_kind: dict[str, list[StoredArtifact]] = defaultdict(list)
    for item in stored:
        by_kind[item.kind].append(item)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("kind", "whole", "unfinished", "size"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind, items in sorted(by_kind.items()):
        whole = sum(item.whole for item in items)
        table.add_row(kind, str(whole), str(len(items) - whole), size(sum(item.bytes for item in items)))
    Console().print(table)
    return 0


def _ls_kind(stored: Sequence[StoredArtifact], kind: str) -> int:
    if kind not in (kinds := {item.kind for item in stored}):
        raise unknown("kind of artifact, or one of which this storage has none:", kind, sorted(kinds))
    for item in stored:
        if item.kind == kind:
            print(f"{size(item.bytes):>10}  {item.name}{'' if item.whole else '  (unfinished)'}")
    return 0


def _verify(storage: Storage, found: Survey) -> int:
    bad = [line for item in found.stored if item.whole for line in damaged(storage, item)]
    bad += [f"{path}: {why}" for path, why in found.unread.items()]
    for line in bad:
        print(line)
    whole = sum(item.whole for item in found.stored)
    print(f"{whole} artifacts verified, {len(bad)} damaged files")
    return 1 if bad else 0


def _barred(storage: Storage, found: Survey, useless: Sequence[StoredArtifact]) -> Iterator[tuple[str, str]]:
    """Folders that hold what is not known to be ours -> why."""
    for item in useless:
        try:
            if others := foreign(storage, item, found):
                yield item.path, f"{', '.join(others[:5])} is not of it: move that away first"
        except InputError as error:
            yield item.path, str(error)


def _prune(storage: Storage, found: Survey, yes: bool, imported: bool) -> int:
    from neulig_ray.pipeline.active_runs import in_use  # imports torch: seconds

    running = in_use(storage)
    keep = referred(storage) | running
    useless = [
        item
        for item in found.stored
        if item.fingerprint not in keep or (not item.whole and item.fingerprint not in running)
    ]
    if barred := dict(_barred(storage, found, useless)):
        useless = [item for item in useless if item.path not in barred]
        for path, why in barred.items():
            print(f"{path} is kept: {why}")
    if spared := set() if imported else imports(storage, useless):
        useless = [item for item in useless if item.fingerprint not in spared]
        print(f"{len(spared)} imported experts of no results yet are kept (--imported removes them too)")
    left = {
        folder: scratch.size(storage, folder)
        for folder in scratch.folders(storage)
        if scratch.gone(storage, folder)
    }
    if not useless and not left:
        print("nothing to remove: every artifact is of some experiment's results, or of a run that goes on")
        return 0
    for item in useless:
        print(f"{item.kind:<12} {size(item.bytes):>10}  {item.name}{'' if item.whole else '  (unfinished)'}")
    for folder, count in left.items():
        print(f"{'run':<12} {size(count):>10}  {folder}  (left by an interrupted driver)")
    total = sum(item.bytes for item in useless) + sum(left.values())
    print(
        f"{len(useless)} artifacts of no experiment's results and {len(left)} folders of interrupted runs, "
        f"{size(total)}"
    )
    if not yes and (
        not sys.stdin.isatty() or input("remove them? [y/N] ").strip().lower() not in ("y", "yes")
    ):
        print("nothing was removed: answer y, or give --yes")
        return 1
    for path in (*(item.path for item in useless), *left):
        storage.delete_tree(path)
    print(f"removed {len(useless)} artifacts" + (f" and {len(left)} folders" if left else ""))
    return 0
