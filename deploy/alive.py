"""Exits with 0 while the relay or worker of this container renews its lease: a health check.

A process that hangs has a process id too; what it does not do is renew its lease.
"""

import os
import socket
import sys

import psycopg

QUERY = "SELECT FROM processes WHERE name LIKE %s AND lease_expires_at > now()"

url = os.environ["HEADRACE_DATABASE_URL"].replace("+psycopg", "")
with psycopg.connect(url, connect_timeout=3) as connection:
    alive = connection.execute(QUERY, [f"%@{socket.gethostname()}"]).fetchone() is not None
sys.exit(not alive)
