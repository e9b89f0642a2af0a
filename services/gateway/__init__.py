"""The door: API keys, admission, routing by model and load, and the relay of event streams."""
