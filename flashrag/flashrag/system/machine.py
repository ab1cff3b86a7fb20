"""What this machine has, asked without importing torch, which would cost many seconds."""

import subprocess


def count_gpus() -> int:
    """NVIDIA GPUs that the driver lists; 0 where there is no driver. Does not look at CUDA_VISIBLE_DEVICES."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
