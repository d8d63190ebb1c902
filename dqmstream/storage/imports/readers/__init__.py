"""What users have, a module a layout: each finds what a file holds, checks it, and names what it does not take."""
