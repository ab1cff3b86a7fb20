"""One evaluation run: its folder, and the model server that it may start."""
