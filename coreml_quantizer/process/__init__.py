"""State of the Python process: the order of steps, garbage collection, and models that torchao keeps."""
