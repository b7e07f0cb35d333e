"""The Ray cluster of a run: started, or connected to, when the first missing artifact asks for it."""

import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from neulig_ray.errors import InputError, StageError
from neulig_ray.plugins import Plugin, load_plugins
from neulig_ray.stages import ray_auth

# What Ray and MLflow read from the environment, in the driver and in every worker.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # report() waits for one poll; the default is 2 s an epoch
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials are artifacts; no csv, json and tensorboard files
    "RAY_AIR_NEW_OUTPUT": "0",
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


class Cluster:
    """A cluster that starts on demand. A fully cached run never calls `start`.

    `say` is told, in one line each, what people should know: who may talk to Ray.
    """

    def __init__(
        self,
        address: str | None,
        plugins: Iterable[Plugin],
        *,
        autoscaling: bool = False,
        say: Callable[[str], None] = _to_standard_error,
    ) -> None:
        self._address = address
        self._plugins = tuple(plugins)
        self._autoscaling = autoscaling
        self._say = say
        self._undo = ExitStack()
        self.started = False
        self.alone = False  # whether it was started here, on this machine alone
        self.needs: Sequence[Need] = ()

    def start(self) -> None:
        """Start or join. The process's environment is as before after `stop`.

        Raises InputError when no Ray answers at the address, when it does not let us in, or when it is too
        small, and for what keeps Ray from starting here; StageError when it does not start.

        What is asked in vain of a cluster would be waited for without end: `needs` are held against it at
        once, before the first job.
        """
        if self.started:
            return
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
        address = self._address or os.environ.get("RAY_ADDRESS")
        if address and address != "auto":
            _check_answers(address)
        if ray.is_initialized():  # a session that the caller owns: tests, notebooks
            self._undo.enter_context(ray_auth.variables(settings))
            if not ray_auth.asks_for_token():
                self._say(f"this process's Ray {_OPEN}")
            return
        if not address:
            if (mode := ray_auth.overridden()) is not None:
                self._say(
                    f"RAY_AUTH_MODE is {mode!r}, which is not followed here: a session of this machine alone "
                    "asks for a token of its own"
                )
            self._undo.enter_context(ray_auth.environment({**settings, **ray_auth.local_settings()}))
            self._undo.callback(ray.shutdown)
            _start(options)
            self.alone = True
            return
        self._undo.enter_context(ray_auth.environment(settings))
        self._undo.callback(ray.shutdown)
        _join(address, options)
        if not ray_auth.asks_for_token():
            self._say(f"{address} {_OPEN}")

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


def _start(options: dict[str, Any]) -> None:
    import ray

    try:
        # Not one that somebody else started here, which a plain ray.init would join.
        ray.init(address="local", include_dashboard=False, **options)
    except Exception as error:  # a plain one, where the node does not come up within Ray's 30 s
        raise StageError(
            f"Ray did not start on this machine: {error}. It may be short of processors or memory; "
            "the same command goes on"
        ) from error


def _join(address: str, options: dict[str, Any]) -> None:
    """ray.init at an address, refused after a bounded wait: Ray itself waits for minutes."""
    import ray
    from ray._raylet import GcsClient

    named = f"--address {address!r}"
    ray_auth.check_token_here(named)
    failure: list[BaseException] = []

    def connect() -> None:
        try:
            if address != "auto" and "://" not in address:
                GcsClient(address=address)  # at once refused without the token; ray.init tries for 20 s
            ray.init(address=address, **options)
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout=60)
    if failure and isinstance(failure[0], ray.exceptions.AuthenticationError):
        raise ray_auth.refused(named) from failure[0]
    if thread.is_alive() or failure:
        reason = failure[0] if failure else "no answer within 60 s"
        raise InputError(
            f"{named}: no Ray answers there ({reason}). "
            "`ray status` on the head shows its address; leave --address out for this machine alone."
        )


def _check_answers(address: str) -> None:
    import socket

    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"--address {address!r}: no Ray answers there ({error}). Use HOST:PORT of the head "
            "(6379 unless told otherwise), `auto` on a node of the cluster, or leave it out."
        ) from error
