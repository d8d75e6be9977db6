"""Averaging weights among strangers: rules that a few liars cannot move far, and what liars try."""
