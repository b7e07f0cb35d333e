"""Finding and loading experiment files."""

import dataclasses
import difflib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from neulig_ray.config import Experiment
from neulig_ray.errors import InputError

FOLDER = Path("experiments")
Variants = Mapping[str, Experiment]


@dataclasses.dataclass(frozen=True)
class ExperimentFile:
    """What a file defines: `experiment`, its docstring, and perhaps `variants`, each chosen by --NAME."""

    experiment: Experiment
    about: str
    variants: Variants


def find(given: str) -> Path:
    """The file of a path or of a stem in ./experiments; raises InputError with the near misses."""
    path = Path(given)
    if path.suffix == ".py":
        if path.is_file():
            return path
    elif (FOLDER / f"{given}.py").is_file():
        return FOLDER / f"{given}.py"
    known = sorted(file.stem for file in FOLDER.glob("*.py"))
    near = difflib.get_close_matches(path.stem, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    listing = f" In ./{FOLDER}: {', '.join(known)}." if known else f" There is no folder ./{FOLDER} here."
    raise InputError(
        f"no experiment {given!r}.{hint}{listing} Give the path of a file or the stem of one there."
    )


def load(given: str) -> tuple[Experiment, str]:
    """The experiment that a file defines, and the file's docstring; raises InputError."""
    found = load_file(given)
    return found.experiment, found.about


def load_file(given: str) -> ExperimentFile:
    """All that an experiment's file defines; raises InputError."""
    path = find(given)
    name = f"neulig_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} does not import: {type(error).__name__}: {error}") from error
    experiment = getattr(module, "experiment", None)
    if not isinstance(experiment, Experiment):
        raise InputError(
            f"{path} defines no `experiment = Experiment(...)` (found {type(experiment).__name__})"
        )
    variants = getattr(module, "variants", {})
    if not isinstance(variants, dict) or not all(isinstance(v, Experiment) for v in variants.values()):
        raise InputError(f'{path}: `variants` is not of the form {{"name": Experiment(...)}}')
    fields = {field.name.replace("_", "-") for field in dataclasses.fields(Experiment)}
    if taken := sorted(fields & variants.keys()):
        raise InputError(f"{path}: the variant {taken[0]!r} has the name of a field: rename it")
    return ExperimentFile(experiment, module.__doc__ or "", variants)


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
