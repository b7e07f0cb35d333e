"""Files of tensors: the safetensors format, the keys of our headers, state dicts, and what fits together."""
