"""What the figures of a benchmark depend on."""

import datetime
import os
import platform
from pathlib import Path

import torch


def machine() -> dict[str, object]:
    """Date, processor, cores and versions of this run."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line for line in lines if "model name" in line), "")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "cpu": model.partition(":")[2].strip() or platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
