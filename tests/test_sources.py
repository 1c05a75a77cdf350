"""Sources: from the bytes of an event to its envelope, or to a refusal."""
