"""Rollouts: episodes on verl's engines, their reward and measures, and the trajectories that are kept of them."""
