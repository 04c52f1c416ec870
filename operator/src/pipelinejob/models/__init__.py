"""Models as sizes of layers, read from a config; nothing here runs one."""
