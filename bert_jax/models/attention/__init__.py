"""Self-attention: its masks, its programs, and the module that uses them."""
