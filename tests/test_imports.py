"""Importing a room changes nothing in the process that imports it."""

import os
import subprocess
import sys

# Packages alone: some modules import torch or Ray, which set variables of their own.
IMPORT_EVERY_ROOM = """
import importlib, os, pkgutil

before = dict(os.environ)
for name in ("flashrag", "rag_serving", "evaluation", "training", "verl_search"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if module.ispkg:
            importlib.import_module(module.name)
print({name: value for name, value in os.environ.items() if before.get(name) != value})
"""


def test_importing_every_room_leaves_the_environment_as_it_was():
    ours = {"OMP_WAIT_POLICY", "TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_PROGRESS_BARS"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    command = [sys.executable, "-c", IMPORT_EVERY_ROOM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("{}\n", "")
