"""The pipeline on the cluster: every arrow of the pipeline is an artifact in the storage."""
