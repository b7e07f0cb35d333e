"""MLflow as a projection of the storage: what the stages wrote, recorded once."""
