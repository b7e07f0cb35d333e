"""The ligand: the gate that gives every image its beta, trained on stored embeddings."""
