"""Jobs sent to machines of others: what they are sent, and how they fare."""
