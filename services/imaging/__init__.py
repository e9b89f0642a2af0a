"""Image codecs; knows no service."""
