"""Tests on a real broker, and how they find one."""
