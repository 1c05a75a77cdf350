"""Consent: what is read, what denies, how records fold, and rule 1."""
