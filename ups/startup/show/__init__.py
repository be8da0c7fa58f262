"""Write, tabulate and draw what the judge found."""
