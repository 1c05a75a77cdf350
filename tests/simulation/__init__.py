"""A simulated cluster in virtual time, and the real lanes on it. See `tests.simulation.world`."""
