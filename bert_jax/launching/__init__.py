"""Jobs that are sent to other machines: the commands, and their state."""
