"""Where bytes are and how they get nearer: the host pool, and transfers from files to devices."""
