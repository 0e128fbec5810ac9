"""Where clips come from: files, folders, lists and annotations become sources."""
