"""Train neural PDE simulators, and see where the time before the first step goes."""

from pathlib import Path

PROJECT_DIR = Path(__file__).resolve().parents[1]
