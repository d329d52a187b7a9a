"""OpenAI's API, as far as text goes."""
