"""What merging and ensembling reach: accuracies, gaps, and how they were reached."""
