"""From an experiment to its results: the plan of all artifacts, the stages in order, costs, records."""
