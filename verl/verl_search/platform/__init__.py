"""Where verl, vLLM and torch are touched: the contract with upstream, and the CPU platform."""
