"""Compiled kernels: LANES problems at a time, one per lane of a SIMD register, blocks of lanes spread over threads.

- ``lanes``: a vector of numbers with the arithmetic of a scalar; everything else is written in it.
- ``threads``: blocks over the threads of a pool of our own.
- ``ldl``: LDL' factorization of sparse quasi-definite matrices; ``rows``: the same for rows of a batch.

The only part of the library that imports numba. A kernel compiles when it is first used and is then loaded from disk.
"""
