"""Tests of celosia."""
