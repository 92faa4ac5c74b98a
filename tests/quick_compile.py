"""`jax.jit` for tests whose programs run once: compiling them is all they cost."""

from functools import partial

import jax

# The same graph; LLVM makes no effort to make it fast.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def run(tx, gradients, state, params=None, **extra):
    """One compiled call of a transformation's update."""
    return jit(tx.update)(gradients, state, params, **extra)
