"""What shows that a ticket wins: controls that should lose."""
