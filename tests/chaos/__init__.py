"""Faults on a real cluster: links that can be cut, brokers and workers that are killed, and what holds all the same."""
