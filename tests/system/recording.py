"""The recording that test devices replay: two noisy sines, which a small network learns to forecast."""

from pathlib import Path

import numpy as np

ROWS = 600


def write(path: Path, seed: int) -> Path:
    """Write `path` (.npz with X [600, 2]), another noise and phase for each `seed`."""
    chance = np.random.default_rng(seed)
    moment = np.arange(ROWS) / 3 + seed
    x = np.stack([np.sin(moment), np.cos(moment)], axis=1) + chance.normal(0, 0.05, (ROWS, 2))
    np.savez(path, X=x.astype(np.float32))
    return path


def examples(path: Path, seed: int, window: int = 4) -> Path:
    """Write held-out examples, windows X [n, window, 2] and the reading after each y [n, 2], standardised."""
    chance = np.random.default_rng(1000 + seed)
    moment = np.arange(ROWS) / 3 + seed
    x = np.stack([np.sin(moment), np.cos(moment)], axis=1) + chance.normal(0, 0.05, (ROWS, 2))
    x = (x - x.mean(0)) / x.std(0)
    windows = np.stack([x[start : start + window] for start in range(ROWS - window)])
    np.savez(path, X=windows.astype(np.float32), y=x[window:].astype(np.float32))
    return path
