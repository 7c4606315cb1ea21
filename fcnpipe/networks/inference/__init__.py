"""Inference: predictors, arithmetic (float32, bfloat16, int8), fused kernels, memory allocator."""
