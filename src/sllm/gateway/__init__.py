"""The HTTP server: Ollama's and OpenAI's APIs over the models of this machine."""
