"""Methods that ask a chat model in words and pictures, and a segmenter for the masks."""
