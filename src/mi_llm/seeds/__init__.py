"""Further training runs of the same models, each with another seed: how much of a score is luck in training."""
