"""Weights, where they come from, and the methods that may change them. Knows no rows."""
