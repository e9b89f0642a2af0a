"""What DreamBooth teaches the embedded model, judged and shown."""
