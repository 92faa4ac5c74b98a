"""Studies and benchmarks behind `docs/`; run each with `python -m`."""
