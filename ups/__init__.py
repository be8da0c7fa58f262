"""Train neural PDE simulators from latents, and get to the first optimizer step fast."""
