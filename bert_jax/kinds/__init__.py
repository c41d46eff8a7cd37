"""What each kind of task needs: its head, loss and predictions."""
