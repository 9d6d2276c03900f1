"""Rows into batches. Knows the model only by its tokenizer."""
