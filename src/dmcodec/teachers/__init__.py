"""Teachers: language and speech models, and their features on the codec's frames."""
