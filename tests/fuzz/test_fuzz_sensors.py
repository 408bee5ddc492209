"""Coverage-guided fuzzing of what comes from a sensor's side, each target in a process of its own."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
RUNS = 50_000
SECONDS = 20
MEMORY_MB = 200  # libFuzzer's bound on the process, Python and numpy included


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris")
@pytest.mark.parametrize("target", ["fuzz_serial_lines", "fuzz_mqtt_values"])
def test_atheris_finds_nothing(target: str, tmp_path: Path) -> None:
    # By way of a shell: the peak RSS of a process, which libFuzzer looks at, includes that of its parent at its start.
    shell = ["/bin/sh", "-c", '"$@"; exit $?', "sh"]
    command = [sys.executable, str(FOLDER / f"{target}.py"), f"-atheris_runs={RUNS}", f"-max_total_time={SECONDS}"]
    done = subprocess.run(
        [*shell, *command, "-max_len=4096", "-timeout=20", f"-rss_limit_mb={MEMORY_MB}", "-seed=1"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(FOLDER.parents[1])},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-4000:]
    assert int(re.findall(r"Done (\d+)", output)[-1]) >= 1000, output[-500:]
