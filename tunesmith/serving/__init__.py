"""Answers over HTTP: the OpenAI API, admission, security, and a light chat page. Knows engines by their contract only."""
