"""Policies: every finding, with its line and its exact words."""
