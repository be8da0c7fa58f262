"""Compare the runs with each other and with earlier benchmarks, and say what got worse."""
