"""The state of the process: order of steps, garbage collection, and what torchao keeps."""
