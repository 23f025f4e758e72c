"""The embedded hub: a small server that answers the real `huggingface_hub` client, read and write.

`hub.local.process.LocalHub` starts one as a child process; `python -m hub.local` runs one in the foreground.
Nothing here is imported by the client side of the project except `process`.
"""
