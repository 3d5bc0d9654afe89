"""The proof: does distilling from a cache work, when, and what does it cost? Everything it does stands in one plan."""
