"""Optimizers that torch does not have; those of torch are named by `_target_`."""
