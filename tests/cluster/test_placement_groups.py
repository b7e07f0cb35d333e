"""What a dead actor reserved is given back, and nothing else is."""

from typing import Any

import pytest

from neulig_ray.cluster.placement_groups import release_orphans

pytestmark = pytest.mark.ray


def test_only_what_dead_actors_of_this_driver_reserved_is_given_back(ray_session: None) -> None:
    import ray

    class Reserving:
        """As Ray Train's controllers do."""

        def reserve(self) -> Any:
            group = ray.util.placement_group([{"CPU": 0.5}])
            assert group.wait(60)
            return group

    def state(group: Any) -> str:
        return str(ray.util.placement_group_table(group)["state"])

    def dead() -> bool:
        try:
            ray.get(one.__ray_ready__.remote())
        except ray.exceptions.RayActorError:
            return True
        return False

    one, other = (ray.remote(num_cpus=0)(Reserving).remote() for _ in range(2))
    dead_ones, live_ones = ray.get([one.reserve.remote(), other.reserve.remote()])
    own = ray.util.placement_group([{"CPU": 0.5}])
    assert own.wait(60)
    try:
        release_orphans()
        assert [state(group) for group in (dead_ones, live_ones, own)] == ["CREATED"] * 3
        ray.kill(one)
        while not dead():
            pass
        assert state(dead_ones) == "CREATED", "Ray gives it back by itself: `release_orphans` can go"
        release_orphans()
        assert [state(group) for group in (dead_ones, live_ones, own)] == ["REMOVED", "CREATED", "CREATED"]
    finally:
        ray.kill(other)
        for group in (dead_ones, live_ones, own):
            ray.util.remove_placement_group(group)
