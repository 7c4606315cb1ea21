"""Image analysis on NumPy arrays: background, separation, measurement and scores, without I/O or engines.

Compiled kernels that call each other are in one file. Numba recompiles a cached kernel only when the
kernel's own file changes. A kernel that called one in another file would keep the old code of that one
after an edit.
"""
