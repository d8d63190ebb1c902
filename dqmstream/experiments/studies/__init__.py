"""The earlier studies of the field, each by one command on the user's own files, beside what they published."""
