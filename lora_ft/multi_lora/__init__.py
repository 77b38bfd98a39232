"""Training of several adapters on one frozen base in one pass, each with the same result as alone."""
