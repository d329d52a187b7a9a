"""What answers token requests: the runtime here, and other engines."""
