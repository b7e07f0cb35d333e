"""`neulig doctor`: what works here and on every node, and what to do where it does not."""
