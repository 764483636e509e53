"""OCI images as EROFS disks: archives, layouts, an image store; no root, no unpacking."""

__version__ = "0.1.0"
