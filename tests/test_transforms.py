"""Forms: their examples run, and what each promises holds for any value."""
