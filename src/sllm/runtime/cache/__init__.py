"""What a model remembers of each request: paged keys and values, and states of fixed size."""
