"""The examples in the docstrings of streams/ run and show what they say."""
