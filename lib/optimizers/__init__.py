"""Optimizers and learning-rate schedules that know nothing of the model: parameters in, updates out."""
