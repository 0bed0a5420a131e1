"""Plain PyTorch, readable first: the oracle of every kernel and the baseline of the benchmarks."""
