"""What an experiment is: its configuration, the models that it combines, its methods, its search space."""
