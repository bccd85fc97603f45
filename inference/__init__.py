"""What a trained model is used by: loading, cached generation, sampling, faster layers."""
