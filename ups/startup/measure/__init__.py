"""Prepare the scenarios' runs, and record what each of them and this machine took."""
