"""Noise: what it hides, what it costs, and that the costs are bounded."""
