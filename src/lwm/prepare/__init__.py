"""Pictures and videos to records of codes, and back."""
