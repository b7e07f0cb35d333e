"""`neulig merge`: one method over any state dicts, stand-alone."""
