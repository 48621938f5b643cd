"""What all other packages use: errors, files, progress, the terminal, digests of code, provenance."""
