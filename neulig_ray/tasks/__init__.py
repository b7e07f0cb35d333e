"""Labelled image data sets: one file each, found by name through TASKS."""

from neulig_ray.tasks._base import TASKS, Split, Task, task

__all__ = ["TASKS", "Split", "Task", "task"]
