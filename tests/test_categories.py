"""The red lines, one by one, and the vocabulary they are written in."""
