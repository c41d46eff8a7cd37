"""What a plan knows of TPUs: chips, compiled programs, what they cost."""
