"""Files of the Hugging Face hub, through its own library: its cache, its offline variables, its errors."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from neulig_ray.errors import InputError
from neulig_ray.weights.folders import INDEX, OPEN_CLIP, TRANSFORMERS, WEIGHTS, shard_names


def download_repository(repository: str, instead: str) -> Path:
    """The folder with a model's configuration and weights, out of the cache or downloaded into it.

    `instead`: what to name in its place, for the remedy. Raises InputError as `explained`.
    """
    places = [url(repository, file) for file in (OPEN_CLIP, TRANSFORMERS)]
    with explained(f"hub repository {repository!r}", places, instead):
        config = first(repository, (OPEN_CLIP, TRANSFORMERS))
        places[:] = [url(repository, file) for file in WEIGHTS[config.name]]
        weights = first(repository, WEIGHTS[config.name])
        if weights.name.endswith(INDEX):
            for part in shard_names(weights):
                hf_hub_download(repository, part)
        return config.parent


def url(repository: str, file: str) -> str:
    return f"{constants.ENDPOINT}/{repository}/resolve/main/{file}"


def first(repository: str, files: Sequence[str]) -> Path:
    """The first of the files that the repository has; where the hub does not answer, that the cache has."""
    failure: Exception | None = None
    unreachable = False
    for file in files:
        try:
            return Path(hf_hub_download(repository, file, local_files_only=unreachable))
        except LocalEntryNotFoundError as error:  # neither an answer nor a file in the cache
            unreachable = True  # asking again for the next file would wait for all retries again
            failure = failure or error
        except EntryNotFoundError as error:
            failure = failure or error
    assert failure is not None
    raise failure


@contextlib.contextmanager
def explained(what: str, places: Sequence[str], instead: str) -> Iterator[None]:
    """Turn a failed download into an InputError: what, from where, and how to do without a network."""
    library = logging.getLogger("huggingface_hub")
    level = library.level
    library.setLevel(logging.ERROR)  # it would tell of each of its retries
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        logging.getLogger(__name__).debug("download of %s", what, exc_info=True)
        offline = " (HF_HUB_OFFLINE is set: only the cache was looked at)" if constants.HF_HUB_OFFLINE else ""
        cause = error.__cause__ or error
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise InputError(
            f"{what} cannot be downloaded{offline}: {reason}\n"
            f"  from: {' or '.join(places)}\n"
            "  by hand: download it where there is a network, and name its file or folder instead: "
            f"{instead}\n"
            f"  or copy the other machine's cache: HF_HOME names its folder (here {constants.HF_HOME}); "
            "HF_HUB_OFFLINE=1 keeps from asking the hub at all"
        ) from error
    finally:
        library.setLevel(level)
