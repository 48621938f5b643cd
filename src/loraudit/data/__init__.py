"""Tasks and models from their sources, tokens, and batches."""
