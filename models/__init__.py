"""What is true: the tables, the statements that read and write them, and the pure rules."""
