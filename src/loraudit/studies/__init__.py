"""What a run, a study and a published number are, from YAML to frozen values; without torch."""
