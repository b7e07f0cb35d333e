"""Experiments from Python: run one, and read what one has measured."""

from pathlib import Path
from typing import Any

from neulig_ray.errors import InputError, unknown
from neulig_ray.experiment.config import Experiment
from neulig_ray.experiment.files import load
from neulig_ray.experiment.overrides import override
from neulig_ray.pipeline.options import RunOptions
from neulig_ray.pipeline.outcome import Results
from neulig_ray.storage.layout import TABLE, usable_name
from neulig_ray.storage.storage import Storage


def run(
    experiment: Experiment | str | Path,
    *,
    storage: str | Path = RunOptions.storage,
    address: str | None = None,
    tracking_uri: str | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> Results:
    """Run an experiment, or what is missing of it, as `neulig run` does: the same artifacts and numbers.

    `experiment`: an `Experiment`, the path of a file that defines one, or the stem of such a file in
    `./experiments`. `storage`: a local path, s3:// or gs://. `address`: a Ray head as HOST:PORT, or `auto`;
    None: a cluster of this machine alone, started where something is missing, and ended afterwards; a Ray
    that this process has joined already is used as it is. `tracking_uri`: an MLflow server; None: a sqlite
    database inside a local storage. `quiet`: no progress on standard error.

    Any other keyword is a field of the experiment; fields of its parts go in a dict, of which the other
    fields keep their values: `seed=1, archs=("tiny-rn",), ligand={"epochs": 20}`.

    Raises InputError for input that no run could use, before anything is started, and StageError for what
    stops all of it. Pieces that fail do not: they are among the results' `failures`.

    Example:
        >>> import neulig_ray as nl
        >>> results = nl.run("smallest", storage="./neulig-storage", quiet=True)
        >>> results.failures
        {}
        >>> ligand = results.summary.query("line == 'ligand sup task'")
        >>> list(ligand.columns[-2:])
        ['seeds', 'expert_seeds']
        >>> page = results.report("smallest.html")
    """
    from neulig_ray.pipeline import run as pipeline_run

    found = experiment if isinstance(experiment, Experiment) else load(str(experiment))[0]
    options = RunOptions(storage=str(storage), address=address, tracking_uri=tracking_uri, quiet=quiet)
    return pipeline_run.run(override(found, overrides), options)


def read_results(storage: str | Path = RunOptions.storage, experiment: str | None = None) -> Results:
    """What the last run of an experiment measured; nothing is run.

    `experiment`: its name; None where the storage has results of one experiment alone.

    Raises InputError, with the names that there are, where there is not one such experiment.

    Example:
        >>> import neulig_ray as nl
        >>> results = nl.read_results("./neulig-storage")
        >>> results.name
        'smallest'
        >>> results.rows.query("method == 'ligand'")["granularity"].nunique()
        7
    """
    place = Storage(str(storage))
    known = _experiments(place)
    if experiment is not None and experiment not in known:
        raise unknown(f"experiment with results in {place.uri}:", experiment, known)
    if experiment is None and len(known) != 1:
        raise InputError(
            f"{place.uri} has results of {len(known)} experiments{': ' * bool(known)}{', '.join(known)}; "
            + ("name one: read_results(storage, NAME), or --experiment NAME" if known else "run one first")
        )
    return Results.read(place, experiment or known[0])


def _experiments(storage: Storage) -> list[str]:
    """The names of the experiments that have results."""
    folders = [name for name, is_folder in storage.top().items() if is_folder and usable_name(name)]
    return sorted(name for name in folders if storage.size(f"{name}/{TABLE}"))
