"""CLIP models through open_clip: architectures, weights, origins, zero-shot heads."""
