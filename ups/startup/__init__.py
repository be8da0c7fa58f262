"""The startup benchmark: measure runs in scenarios, judge them by the history, show the result."""
