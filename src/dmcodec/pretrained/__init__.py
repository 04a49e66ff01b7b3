"""Models that others trained, and the packages that run them: found, checked, loaded."""
