"""NeuLig-Ray: model merging that matches ensembling, on Ray Train, Ray Tune and MLflow."""

__version__ = "0.1.0"
