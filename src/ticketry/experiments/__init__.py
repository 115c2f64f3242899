"""What a command does, also from Python: searches, verifications, stability analyses, timings, structures."""
