"""The token engine: one thread that computes many requests together, pass after pass."""
