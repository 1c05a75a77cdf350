"""Outcomes: shapes and quarantine records say what came without saying what it said."""
