"""Analysis: from stored scores to differences with intervals."""
