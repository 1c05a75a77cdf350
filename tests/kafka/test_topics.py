"""Topics: what a policy needs, and what is wrong with what there is."""
