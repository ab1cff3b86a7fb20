"""The garbage collector's pauses, kept out of the event loop's way.

A full collection looks at every object of the process: with a full queue that took half a second every other second,
and /health waited. What is there once the retriever is loaded stays until the end, so it is looked at no more; and
requests leave no cycles behind that only a full collection would find.
"""

import gc

COLLECTIONS_BETWEEN_FULL_ONES = 1000  # instead of ten


def shorten_pauses() -> None:
    """For a process that serves and does nothing else; called when everything is loaded."""
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, COLLECTIONS_BETWEEN_FULL_ONES)
