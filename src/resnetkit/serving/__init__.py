"""A model behind HTTP: pictures come in from many at a time, and answers go out within a bound."""
