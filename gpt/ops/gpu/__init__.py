"""The operations on a GPU: operations.py launches the kernels of kernels/ and the matrix products of blas.py.

device.py brings one GPU through CuPy. sources.py turns a kernel's file into the text of one compilation.
"""
