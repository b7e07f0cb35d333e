"""`neulig compare`: two rows of the results, image by image."""

import argparse
from collections.abc import Sequence

_EXAMPLE = """\
A ROW is one argument of words column=value, the columns being the key's of docs/results.md:
  neulig compare "arch=tiny-vit n=5 method=ligand alignment=sup granularity=task" \\
                 "arch=tiny-vit n=5 method=average"
A row is of one combination: collaborators= chooses it where there are several.
What is left out of task, seed, expert_seed and order_seed is averaged. accuracy=ensembling chooses a row's
other accuracy.
"""


def main(command: str, arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=f"neulig {command}",
        description="The difference of two rows' accuracies on the same images, with its 95 % interval "
        "(paired bootstrap) and an exact sign test.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("first", metavar="ROW")
    parser.add_argument("second", metavar="ROW")
    parser.add_argument("--storage", default="./neulig-storage", metavar="URI")
    parser.add_argument("--experiment", metavar="NAME", help="where the storage has results of several")
    given = parser.parse_args(arguments)
    from neulig_ray.api.experiments import read_results

    print(read_results(given.storage, given.experiment).compare(given.first, given.second))
    return 0
