"""The server under load: its speed beside other programs, and its answers."""
