"""Worker kernels: the processes that run tasks, and the pool that keeps them running."""
