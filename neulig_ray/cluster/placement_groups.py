"""What dead actors had reserved, given back: else whoever asks for it waits without end."""

from neulig_ray.cluster import ray_internals


def release_orphans() -> None:
    """Remove the placement groups of this driver's actors that died.

    Ray removes an actor's placement groups only when its driver has ended too. Ray Train's controllers have a
    cleaner for this, but it asks the dashboard, which a session of `ray.init` alone does not have, and it may
    be killed with its controller.
    """
    import ray
    from ray.util.placement_group import PlacementGroup

    driver, no_actor = ray.get_runtime_context().get_job_id(), ray.ActorID.nil().binary()
    for group in ray_internals.placement_groups():
        by_dead_actor = group.creator_actor_dead and group.creator_actor_id not in (b"", no_actor)
        removed = ray_internals.is_removed(group)
        if by_dead_actor and group.creator_job_id.hex() == driver and not removed:
            ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
