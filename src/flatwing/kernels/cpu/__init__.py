"""Kernels for the CPU, compiled by numba at first use; import nothing from here unless numba is there."""
