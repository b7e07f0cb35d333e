"""The driver's side of trainings: a run of Ray Train for each group of workers, in a thread of its own."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from neulig_ray.cluster import ray_internals
from neulig_ray.cluster.jobs import Resources, told
from neulig_ray.cluster.placement_groups import release_orphans
from neulig_ray.cluster.progress import StageProgress
from neulig_ray.cluster.run_context import Failures
from neulig_ray.cluster.train.job import TrainJob
from neulig_ray.cluster.train.queue import TrainQueue
from neulig_ray.cluster.train.worker import GroupTask, work
from neulig_ray.storage.storage import Storage

_LOOK_EVERY: Final = 0.3  # seconds between two looks at the queue
_SLOTS_EVERY: Final = 5.0  # seconds between two looks at the size of the cluster


class Groups:
    """Trains `jobs` in their order, with as many groups as the cluster holds while they wait."""

    def __init__(
        self,
        folder: str,
        jobs: Sequence[TrainJob],
        left: Mapping[str, Sequence[str]],
        storage: Storage,
        resources: Resources,
        workers: int,
        stage: StageProgress,
        first: int = 0,
    ) -> None:
        """`first`: the first group's number. `left`: training -> folders with checkpoints of it."""
        self._folder = folder
        self._first = first
        self._jobs = {job.artifact.fingerprint: job for job in jobs}
        self._left = {name: folders for name, folders in left.items() if name in self._jobs}
        self._storage = storage
        self._resources = resources
        self._workers = workers
        self._stage = stage
        self._queue: Any = None
        self._waiting = len(jobs)
        self._broken: list[str] = []
        self.failures: Failures = {}
        self.finished: set[str] = set()

    def run(self, slots: Callable[[], int]) -> None:
        """Train, adding to `finished` what ended, and to `failures` why what could not be made was not.

        `slots`: how many groups the cluster holds now.

        Raises a RayError when the queue is lost: it lives on the driver's node, but may be killed there.
        """
        self._queue = _on_this_node(TrainQueue, list(self._jobs), self._resources.max_failures)
        pool = ThreadPoolExecutor(len(self._jobs) + self._resources.max_failures + 1)
        groups: list[Future[None]] = []
        looked, room = 0.0, 1
        try:
            while True:
                if time.monotonic() - looked > _SLOTS_EVERY:
                    looked, room = time.monotonic(), slots()
                self._stage.slots = running = sum(not group.done() for group in groups)
                if len(self._broken) > self._resources.max_failures and not running:
                    self._call("fail", self._broken[-1])
                self._follow()
                if not running and not self._waiting:
                    break
                if len(self._broken) <= self._resources.max_failures:
                    for _ in range(running, min(room, running + self._waiting)):
                        groups.append(pool.submit(self._keep, self._first + len(groups)))
                time.sleep(_LOOK_EVERY)
        finally:
            pool.shutdown(wait=False)  # an interrupt does not wait for trainings: they go on from checkpoints
        for group in groups:
            group.result()
        self._follow()

    def _call(self, method: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self._queue, method).remote(*arguments))

    def _keep(self, group: int) -> None:
        """A group's run of Ray Train, again where it ends with an error and something is left to do."""
        import ray.train

        while True:
            try:
                self._trainer(group).fit()
                return
            except Exception as error:
                if not isinstance(error, ray.train.WorkerGroupError):  # of these `_losses` told
                    self._call("lost", group, told(error))
                release_orphans()
                if not self._call("goes_on", group):
                    self._broken.append(told(error))
                    return

    def _trainer(self, group: int) -> Any:
        import ray.train
        from ray.train.torch import TorchTrainer

        r, name = self._resources, f"group-{group}"
        task = GroupTask(
            group=group,
            folder=f"{self._folder}/{name}",
            jobs=self._jobs,
            left=self._left,
            storage=self._storage,
            queue=self._queue,
            threads=r.threads,
        )
        return TorchTrainer(
            work,
            train_loop_config={"task": task},
            scaling_config=ray.train.ScalingConfig(
                num_workers=self._workers,
                use_gpu=r.gpus > 0,
                resources_per_worker={"CPU": r.cpus, **({"GPU": r.gpus} if r.gpus else {})},
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=self._storage.child_uri(self._folder),
                # The queue counts losses by training. Ray counts those of a group, which has many.
                failure_config=ray.train.FailureConfig(max_failures=r.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
                callbacks=[_losses(self._queue, group)],
            ),
        )

    def _follow(self) -> None:
        events, self._waiting = self._call("events")
        for kind, name, text in events:
            label = self._jobs[name].artifact.label
            if kind == "running":
                self._stage.running(label, text)
            elif kind == "lost":
                self._stage.note(label, f"goes on from its last checkpoint after {text}")
            else:
                if kind == "failed":
                    self.failures[name] = text
                self.finished.add(name)
                self._stage.finished(label, text, failed=kind == "failed")


def _on_this_node(kind: type, *arguments: Any) -> Any:
    """An actor that lives as long as the driver's node: other nodes may be lost."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(kind).remote(*arguments)


def _losses(queue: Any, group: int) -> Any:
    """Tells the queue, from Ray Train's controller, that workers of the group died."""
    import ray
    import ray.train

    class Losses(ray.train.UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            causes = [ray_internals.cause(error) for error in worker_exceptions.values()]
            if any(ray_internals.was_preempted(cause) for cause in causes):
                return  # a node that was taken back says nothing of the training
            _, error = min(worker_exceptions.items())
            ray.get(queue.lost.remote(group, told(error)))

    return Losses()
