"""What a benchmark does on a GPU, or compiles for one."""
