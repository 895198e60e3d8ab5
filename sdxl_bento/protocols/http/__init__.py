"""What all protocols share: bodies, errors, and the elements of the OpenAPI document."""
