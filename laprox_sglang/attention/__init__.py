"""The attention backend of a server that prunes, and the decode batch it reads."""
