"""The built-in clients, one file each."""
