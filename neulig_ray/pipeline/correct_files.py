"""The bits of all evaluations, gathered beside an experiment's table."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from neulig_ray.errors import InputError, StageError
from neulig_ray.evaluation.correct_images import correct_bytes
from neulig_ray.evaluation.rows import Row
from neulig_ray.pipeline.stored_results import correct_file, read_correctness
from neulig_ray.results.correctness import Correctness
from neulig_ray.results.schema import OK
from neulig_ray.stages.evaluation_jobs import CORRECT_FILE
from neulig_ray.stages.evaluations import PlannedEvaluation
from neulig_ray.storage.storage import Storage

_AT_ONCE: Final = 16  # files: an object store answers each after tens of milliseconds


def gather(
    name: str, measured: Sequence[tuple[PlannedEvaluation, Sequence[Row]]], storage: Storage
) -> list[str]:
    """Write `correct/FINGERPRINT.safetensors` of each evaluation into the experiment's folder.

    Files of other evaluations, of earlier results, are left. A sentence, where some evaluations have no bits:
    they are of a version that kept none, and stay as they are. Raises StageError for bits that are damaged.
    """
    whole = [e for e, rows in measured if any(row.get("status", OK) == OK for row in rows)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(lambda evaluation: _bits(evaluation, storage), whole))
        files: dict[str, dict[str, Correctness]] = {}
        for evaluation, bits in zip(whole, found, strict=True):
            files.setdefault(evaluation.job.artifact.fingerprint, {}).update(bits)
        kept = {correct_file(name, fingerprint): bits for fingerprint, bits in files.items() if bits}
        list(pool.map(lambda path: _write(path, correct_bytes(kept[path]), storage), kept))
    if without := sum(not bits for bits in found):
        return [
            f"{without} of {len(whole)} evaluations are of a version that kept no bits of single images: "
            "their rows have no interval, and cannot be compared in pairs"
        ]
    return []


def _bits(evaluation: PlannedEvaluation, storage: Storage) -> dict[str, Correctness]:
    """The bits of an evaluation's rows by their names in the table, where the seed is the experiment's."""
    try:
        found = read_correctness(storage, f"{evaluation.job.artifact.path}/{CORRECT_FILE}")
    except FileNotFoundError:
        return {}
    except InputError as error:
        folder = storage.full(evaluation.job.artifact.path)
        raise StageError(f"{error}. Or remove the folder {folder}: the same run measures it anew") from None
    seed = evaluation.common["seed"]
    return {f"{key}{seed}" if key.endswith("|") else key: bits for key, bits in found.items()}


def _write(path: str, data: bytes, storage: Storage) -> None:
    try:
        if storage.read(path) == data:
            return
    except FileNotFoundError:
        pass
    storage.write(path, data)
