"""Rewards of noisy latents: a small network with several heads, its training and its files."""
