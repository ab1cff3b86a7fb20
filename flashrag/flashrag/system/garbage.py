"""Keeps the pauses of Python's garbage collector short, for the sake of an event loop.

A full collection visits every object of the process. In the retrieval server with a full queue this took half a second
every other second, and /health waited; in an agent-loop worker it delayed all rollouts as long. Objects that exist once
everything is loaded live until the end, so the collector need not visit them again. Requests and episodes leave no
cycles that only a full collection would find.
"""

import atexit
import gc

COLLECTIONS_BETWEEN_FULL_ONES = 1000  # instead of ten
# Instead of 700: most objects of a request or an episode are gone by then, and are never visited.
NEW_OBJECTS_BETWEEN_YOUNG_ONES = 50_000


def shorten_pauses() -> None:
    """For a process that answers requests or runs episodes and does nothing else; called when everything is loaded."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # libraries that count the objects left at the end would complain
    _, middle, _ = gc.get_threshold()
    gc.set_threshold(NEW_OBJECTS_BETWEEN_YOUNG_ONES, middle, COLLECTIONS_BETWEEN_FULL_ONES)
