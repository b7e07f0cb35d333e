"""Labelled image data sets: one file each, found by name through TASKS."""

from neulig_ray.tasks._base import SPLITS, TASKS, Protocol, Split, Task, task
from neulig_ray.tasks._dynamic import find_task
from neulig_ray.tasks.reading.torchvision import torchvision_task

__all__ = ["SPLITS", "TASKS", "Protocol", "Split", "Task", "find_task", "task", "torchvision_task"]
