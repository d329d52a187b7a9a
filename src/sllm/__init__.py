"""Serverless LLM serving: the streaming runtime, and what it shares with the layers above."""
