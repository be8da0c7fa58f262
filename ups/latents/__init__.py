"""The latent cache: its key, its files, the encoder that fills it and the loaders that read it."""
