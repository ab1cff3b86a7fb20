"""The contact with verl, vLLM and torch: the contract with upstream, and the CPU platform."""
