"""The garbage collector's pauses, kept out of an event loop's way.

A full collection looks at every object of the process. In the retrieval server with a full queue that took half a
second every other second, and /health waited; in an agent-loop worker it held up all its rollouts for as long. What is
there once everything is loaded stays until the end, so it is looked at no more; and requests and episodes leave no
cycles behind that only a full collection would find.
"""

import atexit
import gc

COLLECTIONS_BETWEEN_FULL_ONES = 1000  # instead of ten
# Instead of 700: most of what a request or an episode makes is gone by then, and need not be looked at even once.
NEW_OBJECTS_BETWEEN_YOUNG_ONES = 50_000


def shorten_pauses() -> None:
    """For a process that answers requests or runs episodes and does nothing else; called when everything is loaded."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # libraries that count what is left at the end would complain
    _, middle, _ = gc.get_threshold()
    gc.set_threshold(NEW_OBJECTS_BETWEEN_YOUNG_ONES, middle, COLLECTIONS_BETWEEN_FULL_ONES)
