"""Where state is kept: databases today, blobs and the model catalog when a service needs them."""
