"""Metrics: one list, complete, without labels that could be a person."""
