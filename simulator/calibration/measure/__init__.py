"""Measures kernels, steps and copies on the machine at hand. Needs NumPy alone; torch (and Triton) for a GPU."""
