"""ReSearch as a plugin on upstream verl: search rollouts, their reward, and a CPU platform."""
