"""Other people's formats: what stands in them, and how our models are written in them."""
