"""Triton kernels over the paged KV pool of one GPU.

Each file holds the maths of one kernel, the kernel, and one launcher that validates. Launchers allocate nothing but
their answer, read no device memory on the host, and can be captured in a CUDA graph. Shapes: T tokens, B rows
(sequences of the step), H query heads, K kv heads, G = H / K, D head_dim, W blocks a table row has room for.
"""
