"""The dialect of chat completions. Pure."""
