"""The engine's arithmetic in C: matrix products and blocks, the same bits on every CPU."""
