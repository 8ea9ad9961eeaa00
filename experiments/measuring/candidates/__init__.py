"""Programs for a GPU that have not run on one: raced before they are adopted.

A candidate is no part of the library. A kernel is a `kvjax.kernels.Kernel`,
given to whatever takes `kernel=`.
"""
