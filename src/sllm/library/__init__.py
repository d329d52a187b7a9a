"""The models on this machine, by name: pull, copy, create, remove."""
