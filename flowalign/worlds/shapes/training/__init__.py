"""Training of the built-in models: tokenizer, CLIP, VAE and SD3 transformer, from rendered
pictures alone."""
