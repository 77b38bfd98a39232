"""Several adapters trained on one frozen base in one pass, each as if it were trained alone."""
