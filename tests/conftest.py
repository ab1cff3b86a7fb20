"""Settings of every test process, made before any library reads them: one thread each, no model hub."""

import os

# Two cores and several processes: more OpenMP threads than cores make every barrier wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
