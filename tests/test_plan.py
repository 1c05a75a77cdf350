"""Plans: which form of which field holds at which rung."""
