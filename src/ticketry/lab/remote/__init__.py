"""Stores that many machines share: objects in a bucket or a shared folder, mirrored in a folder of this machine."""
