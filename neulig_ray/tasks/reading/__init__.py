"""Images of data sets on disk or from a hub: found, opened, divided into splits, encoded."""
