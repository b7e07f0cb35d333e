"""The Ray cluster of a run: started, or connected to, when the first missing artifact asks for it."""

import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from neulig_ray.cluster import ray_auth, ray_internals, ray_start
from neulig_ray.cluster.ray_address import AUTO, Address, given
from neulig_ray.errors import InputError
from neulig_ray.plugins import Plugin, load_plugins

# What Ray and MLflow read from the environment, in the driver and in every worker.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials are artifacts; no csv, json and tensorboard files
    **ray_internals.ENVIRONMENT,
}
_ASKED_FOR = 16  # groups at once where the cluster grows on demand; cluster.max_groups lowers it


@dataclass(frozen=True)
class Need:
    """What the largest piece of a stage takes of the cluster at once."""

    what: str
    cpus: float
    gpus: float


def _to_standard_error(text: str) -> None:
    print(text, file=sys.stderr)


class ClusterSession:
    """A cluster that starts on demand. A fully cached run never calls `start`.

    `default`: the address where neither `address` nor RAY_ADDRESS gives one; None: this machine alone.
    `say` is told, in one line each, what people should know: which cluster was joined, and who may
    talk to it.
    """

    def __init__(
        self,
        address: str | None,
        plugins: Iterable[Plugin],
        *,
        autoscaling: bool = False,
        default: str | None = None,
        say: Callable[[str], None] = _to_standard_error,
    ) -> None:
        self._address = address
        self._plugins = tuple(plugins)
        self._autoscaling = autoscaling
        self._default = default
        self._say = say
        self._undo = ExitStack()
        self.started = False
        self.alone = False  # whether it was started here, on this machine alone
        self.needs: Sequence[Need] = ()

    def check(self) -> None:
        """Raise InputError for what would keep `start` from working and is seen without Ray, at once."""
        address = given(self._address, self._default)
        if address is not None:
            address.check_form()
        elif not self.started and not _of_the_caller():
            ray_start.check_machine()

    def start(self) -> None:
        """Start or join. The process's environment is as before after `stop`.

        Raises InputError when no Ray answers at the address, when it does not let us in, or when it is too
        small, and for what keeps Ray from starting here; StageError when it does not start.

        What is asked in vain of a cluster would be waited for without end: `needs` are held against it at
        once, before the first job.
        """
        if self.started:
            return
        self.check()
        try:
            self._open()
            self.started = True
            for need in self.needs:
                self._check(need)
        except BaseException:
            self.stop()
            raise

    def _open(self) -> None:
        import ray

        settings: dict[str, str | None] = {n: os.environ.get(n, value) for n, value in _ENVIRONMENT.items()}
        plugins = self._plugins
        environment: dict[str, Any] = {"env_vars": dict(settings)}
        if plugins:
            environment["worker_process_setup_hook"] = lambda: load_plugins(plugins)
        options: dict[str, Any] = {
            "runtime_env": environment,
            "log_to_driver": False,  # workers speak through the progress board
            "logging_level": "ERROR",
        }
        address = given(self._address, self._default)
        if address is not None and address.value != AUTO:
            address.check_answers()
        if ray.is_initialized():  # a session that the caller owns: tests, notebooks
            self._undo.enter_context(ray_auth.variables(settings))
            if not ray_auth.asks_for_token():
                self._say(f"this process's Ray {_OPEN}")
            return
        if address is None:
            if (mode := ray_auth.overridden()) is not None:
                self._say(
                    f"RAY_AUTH_MODE is {mode!r}, which is not followed here: a session of this machine alone "
                    "asks for a token of its own"
                )
            self._undo.enter_context(ray_auth.environment({**settings, **ray_auth.local_settings()}))
            self._undo.callback(ray.shutdown)
            ray_start.start(options)
            self.alone = True
            return
        self._undo.enter_context(ray_auth.environment(settings))
        self._undo.callback(ray.shutdown)
        where = _join(address, options)
        self._say(f"joined {where} ({address.named}): {self.describe()}")
        if not ray_auth.asks_for_token():
            self._say(f"{where} {_OPEN}")

    def _check(self, need: Need) -> None:
        import ray

        if self._autoscaling:
            return
        have = ray.cluster_resources()
        for resource, amount in (("CPU", need.cpus), ("GPU", need.gpus)):
            if amount > have.get(resource, 0):
                devices = os.environ.get("CUDA_VISIBLE_DEVICES") if self.alone and resource == "GPU" else None
                hidden = "" if devices is None else f" (CUDA_VISIBLE_DEVICES is {devices!r})"
                raise InputError(
                    f"{need.what} needs {amount:g} {resource}s, the cluster has {have.get(resource, 0):g}"
                    f"{hidden}. Lower cluster.{resource.lower()}s_per_worker or the workers, or add nodes; "
                    "--cluster.autoscaling if the cluster grows on demand."
                )

    def slots(self, *, cpus: float, gpus: float, workers: int = 1) -> int:
        """How many groups of `workers` workers of this size the cluster holds now (at least 1).

        On a cluster that grows on demand it is what is asked for, that the demand be seen.
        """
        import ray

        held = 0
        for node in ray.nodes():
            have = node["Resources"] if node["Alive"] else {}
            amounts = [(have.get("CPU", 0), cpus), (have.get("GPU", 0), gpus)]
            held += min((int(has / each + 1e-9) for has, each in amounts if each), default=0)
        return max(1, held // workers, _ASKED_FOR if self._autoscaling else 1)

    def describe(self) -> str:
        """Nodes and resources, for people."""
        import ray

        have = ray.cluster_resources()
        nodes = sum(node["Alive"] for node in ray.nodes())
        return f"{nodes} node{'s' * (nodes > 1)}, {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs"

    def stop(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        self._undo.close()
        self.started = self.alone = False


_OPEN = (
    "asks for no token: whoever reaches one of its ports runs code there. Start it with RAY_AUTH_MODE=token "
    "(docs/security.md)"
)


def _of_the_caller() -> bool:
    """Whether this process has a Ray session already."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _join(address: Address, options: dict[str, Any]) -> str:
    """ray.init at an address, which is returned without `auto`; refused after a bounded wait."""
    import ray

    where = _found_here(address) if address.value == AUTO else address.value
    ray_auth.check_token_here(address.named)

    def connect() -> None:
        if "://" not in where:
            ray_internals.knock(where)
        ray.init(address=where, **options)

    failure = _within(60, connect)
    if failure is not None:
        if isinstance(failure, ray.exceptions.AuthenticationError):
            raise ray_auth.refused(address.named) from failure
        client = ", and Ray Client does not tell whether a token was refused" if "://" in where else ""
        raise address.unusable(f"no Ray answers there ({failure}{client})") from failure
    return where


def _found_here(address: Address) -> str:
    """The cluster of this machine that `auto` means to Ray."""
    ray_internals.use_token_of_home()
    try:
        return ray_internals.address_here(AUTO)
    except (ConnectionError, ValueError) as error:
        raise address.unusable(f"no Ray runs on this machine ({error})") from error


def _within(seconds: float, work: Callable[[], None]) -> BaseException | None:
    """What `work` raised, if anything; a TimeoutError where it takes longer, and then goes on by itself."""
    failure: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join(timeout=seconds)
    if thread.is_alive():
        return TimeoutError(f"no answer within {seconds:g} s")
    return failure[0] if failure else None
