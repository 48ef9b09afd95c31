"""Checks for AMD GPUs without having one: compile kernels, read the resources they take, emulate their machine code."""
