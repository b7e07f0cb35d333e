"""Images drawn by this package itself: captions, glyphs, outlines."""
