"""What Ray does not promise to keep and this package uses all the same: all of it is here, for upgrades.

tests/cluster/test_ray_internals.py fails where an installed Ray has changed one of these.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

# Without it the doctor no longer marks which node is the head.
HEAD_RESOURCE: Final = "node:__internal_head__"
# What `ray up` leaves on the head; without it the doctor needs to be told which nodes a cluster should have.
BOOTSTRAP_CONFIG: Final = Path("~/ray_bootstrap_config.yaml")
# The line of an out-of-memory error that says why; without it a status quotes the end of Ray's manual.
LOW_MEMORY: Final = "low on memory"
# Read by Ray alone; without them a training waits longer for each report, and the output is another.
ENVIRONMENT: Final = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # report() waits for one poll; the default is 2 s an epoch
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def session_folder() -> str:
    """The folder of this node's session; without it the doctor cannot tell how full the disk is."""
    from ray._private import worker

    return str(worker._global_node.get_session_dir_path())


def started_node() -> Any:
    """The node that this process started; without it the doctor cannot name what listens at a port."""
    from ray._private.worker import _global_node

    return _global_node


def node_memory() -> tuple[int, int]:
    """Bytes (used, total) as Ray counts them, limits of containers included; the doctor shows them."""
    from ray._common.utils import get_system_memory
    from ray._private.utils import get_used_memory

    return int(get_used_memory()), int(get_system_memory())


def placement_groups() -> Iterator[Any]:
    """Every placement group with its creator, which Ray's public table lacks: else orphans keep resources."""
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    for row in state._connect_and_get_accessor().get_placement_group_table():
        yield PlacementGroupTableData.FromString(row)


def is_removed(group: Any) -> bool:
    """Whether a group of `placement_groups` is removed; without it a removed one is removed once more."""
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    return bool(group.state == PlacementGroupTableData.REMOVED)


def ready(actor: Any) -> Any:
    """The reference that is ready once an actor is; without it work cannot wait for the actors' start."""
    return actor.__ray_ready__.remote()


def cause(error: BaseException) -> BaseException:
    """What Ray Train wraps when a worker dies; without it a status names the wrapper, not what happened."""
    found: BaseException = getattr(error, "health_check_failure", error)
    return found


def was_preempted(error: BaseException) -> bool:
    """Whether a node was taken back; without it a training is charged with the loss of a spot node."""
    return bool(getattr(error, "preempted", False))


def authenticates() -> bool:
    """Whether this process uses a token; without it a session that is open to all goes unnoticed."""
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())


def read_auth_mode() -> None:
    """Read the mode of authentication from the environment again; else it stays that of Ray's import."""
    from ray._raylet import Config  # type: ignore[attr-defined]  # stubs lack it

    Config.initialize("")


def forget_token() -> None:
    """Have Ray read its token again when it is next asked for one; else an earlier session's is used."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # stubs lack it

    AuthenticationTokenLoader.instance().reset_cache()


def knock(address: str) -> None:
    """Raise at once where a head refuses this process's token; `ray.init` tries for 20 s."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # stubs lack it

    GcsClient(address=address)


def use_token_of_home() -> None:
    """Use a token of the home folder, as `ray.init` does for `auto`; else such a cluster refuses."""
    from ray._private.authentication import authentication_token_setup

    authentication_token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def address_here(value: str) -> str:
    """The cluster that `auto` means; raises ConnectionError or ValueError where none runs here."""
    from ray._private import services

    return str(services.canonicalize_bootstrap_address(value))
