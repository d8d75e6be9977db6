"""The OpenAI-compatible API: an ASGI application, and the small server that carries it."""
