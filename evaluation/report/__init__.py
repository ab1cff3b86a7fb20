"""One HTML page and a Markdown table over evaluation and training runs."""
