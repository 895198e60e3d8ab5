"""The native protocol: the request is flat JSON, the answer a picture."""
