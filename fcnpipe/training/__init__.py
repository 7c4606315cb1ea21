"""How a model is trained: simulated skies, targets, losses and the loop."""
