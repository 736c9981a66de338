// Why contiguous memory was not to be had: never, not now, or later.
