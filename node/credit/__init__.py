"""What was given and taken: counted, signed for, kept."""
