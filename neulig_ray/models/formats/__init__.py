"""Checkpoints of other projects, read and written: open_clip, Hugging Face, TALL masks, task_vectors."""
