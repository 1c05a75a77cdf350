"""Keys, pseudonyms and seals: the vectors of the RFCs, and what must never be linkable or readable."""
