"""Trains sparse autoencoders: the activations they see, their architectures, how well they reconstruct."""
