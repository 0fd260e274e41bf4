"""Text for language models: tokenizers, streams of text, masking, and the sets of GLUE."""
