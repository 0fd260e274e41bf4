"""What stands around the mixers of a sequence model."""
