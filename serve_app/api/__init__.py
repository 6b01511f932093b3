"""REST, SSE and WebSocket over the chat service: the only importer of FastAPI."""
