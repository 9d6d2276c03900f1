"""The OpenAI API over an engine, with limits, keys and a chat page."""
