"""Code completion: suggestions from a model, and the editor that shows them."""
