"""Rollouts: episodes on verl's engines, their reward and measures, and their stored trajectories."""
