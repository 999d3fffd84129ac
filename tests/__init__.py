"""Tests as experiments; README.md says which folder a question belongs to."""
