"""One evaluation run: its folder, its records, the server that it may bring."""
