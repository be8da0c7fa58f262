"""Using an operator that was trained: predict, score, export."""
