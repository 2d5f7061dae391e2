"""Training of sparse autoencoders: activations, architectures, metrics."""
