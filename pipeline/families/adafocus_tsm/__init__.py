"""AdaFocus-TSM: one place for a whole clip, and two networks that shift their channels along time."""
