"""llmproxy: one OpenAI-compatible gateway in front of every model vendor."""

__version__ = "0.1.0"
