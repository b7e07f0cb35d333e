"""Training in plain torch: generators that yield their progress and can be resumed bit for bit."""
