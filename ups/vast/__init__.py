"""Rent a GPU on Vast.ai for one run: find an offer, launch, resume, and stop without fail."""
