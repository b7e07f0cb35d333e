"""Which images a ligand sees at which step: a function of the seed and the combination alone."""

from collections.abc import Iterator, Sequence

import numpy as np

from neulig_ray.ligand.data import Combination, combination_key
from neulig_ray.seeds import stable_generator


class Schedule:
    """The reference's loop for one combination.

    An epoch is min_t(batches of task t) rounds; a round is one step on a batch of each task in turn. As in
    the reference's loaders the last, smaller batch of a task counts as a batch. Every epoch shuffles every
    task anew, from (seed, combination, collaborator, epoch).
    """

    def __init__(self, combination: Combination, sizes: Sequence[int], batch_size: int, seed: int) -> None:
        """`sizes`: the images of each collaborator's own task."""
        self.combination, self.sizes, self.batch_size, self.seed = combination, sizes, batch_size, seed
        self.rounds = min(-(-size // batch_size) for size in sizes)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rounds without end: images int64 (n, batch) and the weight of each in its batch's mean.

        Places that a smaller batch leaves empty repeat image 0 with weight 0.
        """
        epoch = 0
        while True:
            parts = [self._epoch(slot, epoch) for slot in range(len(self.combination))]
            yield from zip(
                np.stack([images for images, _ in parts], 1),
                np.stack([weights for _, weights in parts], 1),
                strict=True,
            )
            epoch += 1

    def _epoch(self, slot: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        names = (self.seed, combination_key(self.combination), self.combination[slot], epoch)
        order = stable_generator("schedule", *names).permutation(self.sizes[slot])
        images = np.full(self.rounds * self.batch_size, -1, np.int64)
        used = min(len(images), len(order))
        images[:used] = order[:used]
        batches = images.reshape(self.rounds, self.batch_size)
        real = batches >= 0
        weights = (real / real.sum(1, keepdims=True)).astype(np.float32)
        return np.maximum(batches, 0), weights
