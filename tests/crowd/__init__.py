"""Tests of the crowd gate: pure folds against slow references, attacks, and real purchases."""
