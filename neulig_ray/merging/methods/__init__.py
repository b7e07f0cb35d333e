"""One file for each merging method; what is public here is found by its name."""
