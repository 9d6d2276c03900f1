"""Files of other platforms into Tunesmith's configs, key by key, with a verdict on every one."""
