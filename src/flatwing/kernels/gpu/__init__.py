"""Kernels for CUDA devices, written in Triton; imported only when one of them runs.

`factor`, `weights`, `pair`, `pair_weights` hold the device code; `launch` gives them tensors; `tiles` and `tune` choose
how the work is cut; `groups` cuts a chain into launches and predicts their time.
"""
