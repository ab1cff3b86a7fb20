"""Long runs that try to break what this repository serves; they end with exit code 1 when they succeed."""
