"""Trainings on Ray Train: worker groups that take one training after another from a queue."""
