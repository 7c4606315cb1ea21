"""Image analysis on NumPy arrays: background, separation, measurement and scores, without I/O or engines.

Compiled kernels that call each other are in one file. Numba caches a kernel with the modification time
of its own file only: a kernel that calls one in another file keeps the old code of that one after an edit.
"""
