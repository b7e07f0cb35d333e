"""What every stage of a run has in hand."""

from dataclasses import dataclass, field

from neulig_ray.cluster.progress import Reporter
from neulig_ray.cluster.session import ClusterSession
from neulig_ray.storage.storage import Storage

Failures = dict[str, str]  # fingerprint of an artifact that could not be made -> why


@dataclass(frozen=True)
class RunContext:
    """Where artifacts lie, where they are made, whom progress is told, and what could not be made.

    Stages add to `failures`; whatever needs an artifact that stands there fails for the same reason.
    """

    storage: Storage
    cluster: ClusterSession
    reporter: Reporter
    failures: Failures = field(default_factory=dict)
