"""The leakage metrics as pure functions of images, one file each."""
