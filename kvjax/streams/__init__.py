"""What a token leaves behind, how it is stored, and how it is seen.

The vocabulary of the package: caches say where tokens go, kernels attend,
variants project; none of them imports another, and all of them use these.
"""
