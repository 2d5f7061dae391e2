"""The sampler with fused weights: the decoder, its weights, and the check that it gives the policy's own logits."""
