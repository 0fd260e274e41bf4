"""Pure functions on tensors, and the kernels behind them."""
