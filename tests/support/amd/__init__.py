"""AMD GPUs without one: kernels compiled by real compilers, their resources read, their machine code emulated."""
