"""The nouns of Tunesmith. Knows no torch and no room above."""
