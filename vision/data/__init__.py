"""Images for training: where they come from, how they are cut and mixed, in what order they come."""
