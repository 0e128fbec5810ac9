"""Files and streams become frames, frames become views, views become windows and patches."""
