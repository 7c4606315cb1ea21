"""What the tasks of each stage do: the only place where reading and writing meet science."""
