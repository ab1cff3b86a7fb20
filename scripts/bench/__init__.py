"""Measurements of what this repository serves: each a command that ends with one line of JSON."""
