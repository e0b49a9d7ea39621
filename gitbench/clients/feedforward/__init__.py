"""Networks that are a plain chain of layers: gradients, and how these change with the images, both written out."""
