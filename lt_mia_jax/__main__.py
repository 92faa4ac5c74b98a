"""`python -m lt_mia_jax`: the same as `lt-mia`."""

import sys

from lt_mia_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
