"""Training of networks: data sources, augmentation, targets, losses, the training loop and model files."""
