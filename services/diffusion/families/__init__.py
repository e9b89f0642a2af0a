"""Model architectures: what each consists of, and how its folders are read."""
