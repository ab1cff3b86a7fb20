import subprocess
import sys


def test_what_is_loaded_is_looked_at_no_more():
    code = """
import gc
from flashrag.system.garbage import shorten_pauses
loaded = [[] for _ in range(1000)]
shorten_pauses()
assert gc.get_freeze_count() > 1000
assert not any(each is loaded for each in gc.get_objects())
assert gc.get_threshold() == (50_000, 10, 1000)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
