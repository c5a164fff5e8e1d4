"""Networks of published shapes, generated with seeded weights, and what they take on an engine: ``celosia bench``."""
