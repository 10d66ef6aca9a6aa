"""Self-supervised learning: autoencoders, contrastive and predictive representations."""
