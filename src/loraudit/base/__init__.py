"""What all other packages use: errors, files, progress, terminal, digests of code, provenance."""
