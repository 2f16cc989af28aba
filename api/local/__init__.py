"""Everything on one machine: embedded servers, a supervisor, and the commands that run the whole stack.

This package spawns the other processes and never imports them.
"""
