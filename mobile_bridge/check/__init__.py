"""Says what a target (an execution provider) makes of an artifact: which nodes it takes, whether results agree."""
