"""The native protocol: flat JSON in, a picture out."""
