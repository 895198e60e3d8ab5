"""The part of AUTOMATIC1111's web API that draws."""
