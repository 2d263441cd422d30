"""Pictures: how they look, and the kinds that more than one command draws. Files only, nothing on a screen."""
