"""The life of a run, the training loop, and the methods that it trains."""
