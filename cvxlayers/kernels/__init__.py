"""Compiled kernels: LANES problems at a time, one per lane of a SIMD register, blocks of lanes spread over threads.

- ``lanes``: a vector of numbers with the arithmetic of a scalar; everything else is written in it.
- ``threads``: blocks over the threads of a pool of our own. ``disk``: how kernels are compiled, and kept for later processes; ``pipeline``
  what numba leaves out for them, ``lowering`` their way to LLVM, ``calls`` how they call each other.
- ``ldl``: LDL' factorization of sparse quasi-definite matrices, in the pieces that ``symbolic`` finds, in an order by ``ordering``;
  ``rows``: the same for rows of a batch.
- ``interior``: the interior-point method of the solver INTERIOR, whose mathematics stands there; ``system`` its matrix, ``equilibrate``
  its scaling, ``newton`` its steps, ``assess`` its measures, ``memory`` its vectors, ``programs`` its rows.
- ``cones``: what the method asks of cones; ``nonnegative``, ``second_order``, ``semidefinite`` (on ``small_dense``) and
  ``three_dimensional`` (on ``barriers``) answer.
- ``projections``: exponential and power cones' projections, compiled from the text of `cvxlayers.cones` with ``arrays`` for its namespace.
- ``active_set``: the method of the solver ACTIVE_SET, on the products and factors of ``matrices`` and the constraints of ``working_set``;
  ``active_rows`` its rows.

The only part of the library that imports numba. A kernel compiles when it is first used and is then loaded from disk.
"""
