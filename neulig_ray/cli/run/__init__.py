"""`neulig run`, and the commands that stop earlier in the pipeline."""
