"""Formats of weights: quantizing, products without our kernels, checkpoints that come quantized."""
