"""poqueue beside its peers, on the workloads of the performance targets: `python -m tests.benchmarks`."""
