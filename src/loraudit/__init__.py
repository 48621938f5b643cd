"""loraudit: LoRA reproducibility studies, from a study file to a verdict."""
