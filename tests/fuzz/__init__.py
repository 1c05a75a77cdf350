"""Fuzzing of everything that reads bytes from outside: whatever comes, only our own errors leave, and say nothing."""
