"""What every stage of a run has in hand."""

from dataclasses import dataclass, field

from neulig_ray.cluster.progress import Reporter
from neulig_ray.cluster.session import Cluster
from neulig_ray.storage.storage import Storage


@dataclass
class RunContext:
    """`failures`: fingerprint of an artifact -> why it could not be made; stages add to it."""

    storage: Storage
    cluster: Cluster
    reporter: Reporter
    failures: dict[str, str] = field(default_factory=dict)
