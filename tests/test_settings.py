"""Settings: read from the environment, refused when they make no sense."""
