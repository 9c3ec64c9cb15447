"""The life of the process: sockets, systemd, signals."""
