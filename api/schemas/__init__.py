"""Wire shapes: what a request may say, and what the resources look like in the OpenAPI document."""
