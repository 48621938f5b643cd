"""The methods that a run can train by, a module for each kind; studies/methods.yaml lists them."""
