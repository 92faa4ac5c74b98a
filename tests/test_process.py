"""What a command says of the machine that it runs on."""

import os
import subprocess
import sys

import pytest


def run(platforms, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "lt_mia_jax", *arguments],
        env=os.environ | {"JAX_PLATFORMS": platforms},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


# No machine has all three: the test needs none of them.
@pytest.mark.parametrize("platforms", ["tpu", "cuda", "nonsense"])
def test_a_platform_without_a_device_is_one_line(tmp_path, platforms):
    import importlib.util

    plugins = {"tpu": "libtpu", "cuda": "jax_cuda12_plugin"}
    if importlib.util.find_spec(plugins.get(platforms, "no_such_plugin")):
        pytest.skip(f"this machine may have {platforms}")
    out = tmp_path / "out"
    done = run(platforms, "demo", "--out", str(out))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert f"lt-mia: error: JAX_PLATFORMS={platforms}: no such device" in done.stderr
    assert "unset JAX_PLATFORMS" in done.stderr
    assert not out.exists()


def test_a_report_needs_no_device(tmp_path):
    done = run("nonsense", "report", "--runs", str(tmp_path), "--out", "page.html")
    assert done.returncode == 2
    assert "JAX_PLATFORMS" not in done.stderr
