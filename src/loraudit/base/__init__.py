"""What everything stands on: errors, files, progress, the terminal, digests of code, provenance."""
