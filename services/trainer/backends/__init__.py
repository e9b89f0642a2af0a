"""Where runs happen: `backend` is the seam, the other modules are ways through it."""
