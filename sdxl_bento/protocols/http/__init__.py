"""What all protocols share of HTTP: bodies, errors, and the parts of the OpenAPI document."""
