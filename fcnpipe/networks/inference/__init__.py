"""Running networks: precision, fused and integer kernels, memory allocator."""
