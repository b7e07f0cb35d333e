"""Experiments as the command line names them: a file, and perhaps one of its variants."""

from collections.abc import Sequence

from neulig_ray.errors import InputError
from neulig_ray.experiment.config import Experiment
from neulig_ray.experiment.files import FOLDER, Variants, find, folders, known, load, load_file

__all__ = ["FOLDER", "Variants", "choose", "described", "find", "folders", "known", "load", "load_file"]


def choose(
    experiment: Experiment, variants: Variants, arguments: Sequence[str]
) -> tuple[Experiment, list[str]]:
    """The variant that a flag --NAME asks for, or the experiment itself; and the arguments without that flag.

    Raises InputError for two variants at once.
    """
    asked = list(
        dict.fromkeys(word for word in arguments if word.removeprefix("--") in variants and word[:2] == "--")
    )
    if len(asked) > 1:
        raise InputError(f"{' and '.join(asked)} are two variants of one experiment: give one of them")
    rest = [word for word in arguments if word not in asked]
    return (variants[asked[0][2:]] if asked else experiment), rest


def described(about: str, variants: Variants) -> str:
    """The text of --help: the file's docstring, and its variants."""
    if not variants:
        return about
    named = "\n".join(f"  --{name}: the experiment {e.name!r} instead" for name, e in variants.items())
    return f"{about}\n\nVariants (every field can be set over them as well):\n{named}"
