"""R-GAP with an image prior: the input, layer by layer from the logits down, when the parameters are known."""
