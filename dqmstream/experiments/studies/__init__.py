"""The earlier studies of the field, repeated on the user's own files, with the published figures beside them."""
