"""Code completion: suggestions from a model, and the editor that shows them."""

MAX_BYTES = 32  # of a suggestion
MIN_CONFIDENCE = 0.2  # of a suggestion: its probability
