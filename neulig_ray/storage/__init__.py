"""Where artifacts live: names, manifests, claims, and what drivers leave while they go on. Knows no Ray."""
