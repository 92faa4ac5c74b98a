import platform
import subprocess
import sys

import pytest

RELEASED = """
import sys
import numpy as np
from lt_mia_jax.process import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

if sys.argv[1] == "keep":
    keep_freed_memory()
x = np.ones(2**25)  # 256 MiB
held = resident()
del x
print(held - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is tuned")
@pytest.mark.parametrize("how", ["keep", "release"])
def test_freed_memory_is_kept_for_the_next_use(how):
    done = subprocess.run(
        [sys.executable, "-c", RELEASED, how],
        capture_output=True,
        text=True,
        check=True,
    )
    released = float(done.stdout)
    assert released < 10 if how == "keep" else released > 200
